// The answers of every visible run to one prompt, side by side, before and after training.

const sampleOptions = { oneSeed: true, onlyDifferent: false };

const answersTo = (prompt) => {
  const shown = new Set(visible().map((configuration) => configuration.index));
  const taken = new Set();
  return prompt.answers.map(([run, before, after, correctBefore, correctAfter]) => ({ run: data.runs[run], before, after, correctBefore, correctAfter }))
    .filter(({ run }) => shown.has(run.configuration))
    .filter(({ run }) => !sampleOptions.oneSeed || (!taken.has(run.configuration) && taken.add(run.configuration)));
};
const shownPrompts = () => data.prompts.map((prompt, index) => ({ prompt, index })).filter(({ prompt }) => !sampleOptions.onlyDifferent || new Set(answersTo(prompt).map(({ after }) => after)).size > 1);

const correctnessMark = (correct) => (correct == null ? null : make("p", { class: `verdict ${correct ? "right" : "wrong"}`, text: correct ? "✓ right" : "✗ wrong" }));
const answerText = (text) => (text == null ? emptyNote("not generated") : text.trim() ? make("p", { class: "answer", text }) : emptyNote("empty"));
const answerBox = ({ run, before, after, correctAfter }, sameBefore) => {
  const configuration = data.configurations[run.configuration];
  const seed = configuration.seeds.length > 1 ? ` (seed ${run.seed})` : "";
  return make("div", { class: "after", style: `border-color: ${colorOf(configuration)}`, "data-row": configuration.index },
    make("h3", { text: sampleOptions.oneSeed ? `${configuration.label}${seed}` : run.label }),
    sameBefore ? null : make("p", { class: "interval", text: `before: ${before ?? "not generated"}` }),
    answerText(after), correctnessMark(correctAfter));
};

const optionBox = (label, name) => {
  const box = make("input", { type: "checkbox", onchange: (event) => { sampleOptions[name] = event.target.checked; drawSamples(); } });
  box.checked = sampleOptions[name];
  return make("label", {}, box, label);
};
const stepPrompt = (by) => {
  const shown = shownPrompts();
  if (!shown.length) return;
  const position = Math.max(0, shown.findIndex(({ index }) => index === state.prompt));
  state.prompt = shown[(position + by + shown.length) % shown.length].index;
  drawSamples();
};
const stepButton = (id, by, label, text) => make("button", { type: "button", id, onclick: () => { stepPrompt(by); byId(id).focus(); }, "aria-label": label, text });
const samplesBar = (shown) => {
  const select = make("select", { id: "prompt", "aria-label": "Prompt", onchange: (event) => { state.prompt = Number(event.target.value); drawSamples(); byId("prompt").focus(); } },
    ...shown.map(({ prompt, index }, position) => make("option", { value: index, text: `${position + 1}. ${truncate(prompt.prompt.replace(/\s+/g, " "), 90)}` })));
  select.value = String(state.prompt);
  return make("div", { class: "bar plain" },
    stepButton("previous", -1, "previous prompt", "◂"), select, stepButton("next", 1, "next prompt", "▸"),
    optionBox("one seed per configuration", "oneSeed"), optionBox("only prompts where answers differ", "onlyDifferent"),
    make("span", { class: "note", text: "keys: j next, k previous" }));
};

const drawSamples = () => {
  const target = byId("samples");
  if (!data.prompts.length) return target.replaceChildren(emptyNote("No samples were generated."));
  const shown = shownPrompts();
  if (shown.length && !shown.some(({ index }) => index === state.prompt)) state.prompt = shown[0].index;
  if (!shown.length) return target.replaceChildren(samplesBar(shown), emptyNote("Every visible run gave the same answer to every prompt."));
  const prompt = data.prompts[state.prompt];
  const answers = answersTo(prompt);
  const sameBefore = new Set(answers.map(({ before }) => before)).size === 1;
  target.replaceChildren(samplesBar(shown), make("article", { class: "sample" },
    make("p", { class: "prompt", text: prompt.prompt }),
    prompt.expected ? make("p", { class: "expected-answer" }, make("span", { text: "expected" }), ` ${prompt.expected}`) : null,
    make("div", { class: "answers" },
      sameBefore ? make("div", {}, make("h3", { text: "before, in every run" }), answerText(answers[0].before), correctnessMark(answers[0].correctBefore)) : null,
      ...answers.map((answer) => answerBox(answer, sameBefore))),
    answers.length ? null : emptyNote("No visible run answered this prompt.")));
};
