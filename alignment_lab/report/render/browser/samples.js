// Samples of one prompt side by side: what every visible run answered, before and after.

const seedShown = { one: true }; // one seed of each configuration, or all of them
const differing = { only: false };

const answersOf = (prompt) => {
  const shown = new Map(visible().map((one) => [one.place, one]));
  const taken = new Set();
  return prompt.answers.map(([cell, before, after, wasRight, isRight]) => ({ cell: data.cells[cell], before, after, wasRight, isRight }))
    .filter(({ cell }) => shown.has(cell.configuration))
    .filter(({ cell }) => !seedShown.one || (!taken.has(cell.configuration) && taken.add(cell.configuration)));
};
const promptsShown = () => data.prompts.map((prompt, place) => ({ prompt, place })).filter(({ prompt }) => !differing.only || new Set(answersOf(prompt).map(({ after }) => after)).size > 1);

const verdictMark = (right) => (right == null ? null : make("p", { class: `verdict ${right ? "right" : "wrong"}`, text: right ? "✓ right" : "✗ wrong" }));
const answerText = (words) => (words == null ? make("p", { class: "none", text: "not generated" }) : words.trim() ? make("p", { class: "answer", text: words }) : make("p", { class: "none", text: "empty" }));
const answerBox = ({ cell, before, after, isRight }, sameBefore) => {
  const one = data.configurations[cell.configuration];
  return make("div", { class: "after", style: `border-color: var(--series-${one.colour})`, "data-row": one.place },
    make("h3", { text: seedShown.one ? `${one.label}${one.seeds.length > 1 ? ` (seed ${cell.seed})` : ""}` : cell.label }),
    sameBefore ? null : make("p", { class: "interval", text: `before: ${before ?? "not generated"}` }),
    answerText(after), verdictMark(isRight));
};

const option = (words, holder, name) => {
  const box = make("input", { type: "checkbox", onchange: (event) => { holder[name] = event.target.checked; drawSamples(); } });
  box.checked = holder[name];
  return make("label", {}, box, words);
};
const step = (by) => {
  const shown = promptsShown();
  if (!shown.length) return;
  const at = Math.max(0, shown.findIndex(({ place }) => place === state.prompt));
  state.prompt = shown[(at + by + shown.length) % shown.length].place;
  drawSamples();
};
const samplesBar = (shown) => {
  const list = make("select", { id: "prompt", "aria-label": "Prompt", onchange: (event) => { state.prompt = Number(event.target.value); drawSamples(); byId("prompt").focus(); } },
    ...shown.map(({ prompt, place }, at) => make("option", { value: place, text: `${at + 1}. ${short(prompt.prompt.replace(/\s+/g, " "), 90)}` })));
  list.value = String(state.prompt);
  return make("div", { class: "bar plain" },
    make("button", { type: "button", id: "previous", onclick: () => { step(-1); byId("previous").focus(); }, "aria-label": "previous prompt", text: "◂" }), list,
    make("button", { type: "button", id: "next", onclick: () => { step(1); byId("next").focus(); }, "aria-label": "next prompt", text: "▸" }),
    option("one seed of each", seedShown, "one"), option("only prompts where answers differ", differing, "only"),
    make("span", { class: "note", text: "keys: j next, k previous" }));
};

const drawSamples = () => {
  const target = byId("samples");
  if (!data.prompts.length) return target.replaceChildren(make("p", { class: "none", text: "No samples were generated." }));
  const shown = promptsShown();
  if (shown.length && !shown.some(({ place }) => place === state.prompt)) state.prompt = shown[0].place;
  if (!shown.length) return target.replaceChildren(samplesBar(shown), make("p", { class: "none", text: "Every visible run gave the same answer to every prompt." }));
  const prompt = data.prompts[state.prompt];
  const answers = answersOf(prompt);
  const befores = new Set(answers.map(({ before }) => before));
  const same = befores.size === 1;
  target.replaceChildren(samplesBar(shown), make("article", { class: "sample" },
    make("p", { class: "prompt", text: prompt.prompt }),
    prompt.expected ? make("p", { class: "wanted" }, make("span", { text: "the data's answer" }), ` ${prompt.expected}`) : null,
    make("div", { class: "answers" },
      same ? make("div", {}, make("h3", { text: "before, in every run" }), answerText(answers[0].before), verdictMark(answers[0].wasRight)) : null,
      ...answers.map((answer) => answerBox(answer, same))),
    answers.length ? null : make("p", { class: "none", text: "No visible run answered this prompt." })));
};
