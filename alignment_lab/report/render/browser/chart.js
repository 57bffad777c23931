// Small charts as SVG: axes, ticks, points, lines. Knows places on a plane, and no metrics.

const svgName = "http://www.w3.org/2000/svg";
const svg = (tag, attributes = {}, ...children) => {
  const made = document.createElementNS(svgName, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};
const dashes = [null, "6 3", "2 2", "7 2 2 2"];
const colourOf = (one) => `var(--series-${one.colour})`;
const swatch = (one) =>
  svg("svg", { class: "swatch", viewBox: "0 0 22 10", "aria-hidden": "true" },
    svg("line", { x1: 1, x2: 21, y1: 5, y2: 5, stroke: colourOf(one), "stroke-width": 2.4, "stroke-dasharray": dashes[one.dash] }));

/** A number as a reader says it: three or four digits that tell it from its neighbours. */
const said = (value, step = 0) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (step && step < 1e-3) return value.toExponential(1);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(size < 1e-4 ? 1 : 2).replace(/\.?0+e/, "e").replace("e+", "e");
  const digits = step ? decimals(step) : size < 0.01 ? 5 : size < 10 ? 3 : size < 100 ? 2 : size < 1000 ? 1 : 0;
  return value.toLocaleString("en", { minimumFractionDigits: step ? digits : 0, maximumFractionDigits: digits });
};
/** How many decimals tell multiples of this step apart. */
const decimals = (step) => [0, 1, 2, 3, 4, 5, 6].find((count) => Math.abs(step * 10 ** count - Math.round(step * 10 ** count)) < 1e-6 * step * 10 ** count) ?? 6;

/** Round places between low and high; of a log axis the decades, or 1, 2, 5 of them where they are few. */
const ticks = (low, high, wanted, log) => {
  if (log) {
    const decades = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) decades.push(10 ** power);
    const within = (list) => list.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    const few = within(decades);
    return few.length > 2 ? few.filter((_, at) => at % Math.ceil(few.length / wanted) === 0) : within(decades.flatMap((one) => [one, 2 * one, 5 * one]));
  }
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((part) => part * power).find((part) => part >= raw * 0.999);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) found.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return found;
};

const extent = (values, { log, bounded, zero } = {}) => {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (zero) low = Math.min(0, low);
  if (log) return [low / 1.15, high * 1.15];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.5;
  [low, high] = [zero && low === 0 ? 0 : low - room, high + room];
  return bounded ? [Math.max(low, -0.02), Math.min(high, 1.02)] : [low, high];
};

/**
 * A chart that others draw into: `x(value)` and `y(value)` are places in it, `marks` what a pointer finds.
 * `categories` in place of a range for x: places 0, 1, 2 with these names. `places`: where x has its ticks, in place of round ones.
 */
const plane = ({ width = 460, height = 260, xs, ys, xTitle, yTitle, log = false, logY = false, bounded = false, zero = false, categories = null, places = null, whole = false, name }) => {
  const [x0, x1] = categories ? [-0.5, categories.length - 0.5] : extent(xs, { log, zero });
  const [y0, y1] = extent(ys, { bounded, log: logY });
  const yTicks = ticks(y0, y1, 5, logY);
  const yStep = logY ? 0 : yTicks[1] - yTicks[0] || 0;
  const labels = yTicks.map((tick) => said(tick, yStep));
  const left = 22 + 6.6 * Math.max(...labels.map((label) => label.length), 1);
  const box = { left, right: width - 10, top: 8, bottom: height - 38 };
  const part = (value, low, high, logarithmic) => (logarithmic ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low)) : (value - low) / (high - low));
  const x = (value) => box.left + (categories ? (value - x0) / (x1 - x0) : part(value, x0, x1, log)) * (box.right - box.left);
  const y = (value) => box.bottom - part(value, y0, y1, logY) * (box.bottom - box.top);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name, class: "plot" });
  const axes = svg("g", { class: "axes" });
  yTicks.forEach((tick, at) => axes.append(
    svg("line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), class: tick === 0 ? "zero" : "grid" }),
    svg("text", { x: box.left - 6, y: y(tick) + 3.5, "text-anchor": "end", text: labels[at] })));
  let xTicks = categories ? categories.map((_, at) => at) : places || ticks(x0, x1, 5, log);
  if (whole && !categories) xTicks = xTicks.filter((tick) => Number.isInteger(tick));
  const xStep = xTicks[1] - xTicks[0] || 0;
  xTicks.forEach((tick) => axes.append(
    svg("line", { x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom, class: "grid" }),
    svg("text", { x: x(tick), y: box.bottom + 15, "text-anchor": "middle", text: categories ? short(categories[tick], 80 / categories.length + 4) : said(tick, log || places ? 0 : xStep) })));
  axes.append(
    svg("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle", class: "title", text: xTitle }),
    svg("text", { x: 11, y: (box.top + box.bottom) / 2, transform: `rotate(-90 11 ${(box.top + box.bottom) / 2})`, "text-anchor": "middle", class: "title", text: yTitle }));
  drawing.append(axes);
  const marks = [];
  pointing(drawing, marks, width);
  return { drawing, x, y, marks, box };
};
const short = (words, most) => (String(words).length > most ? `${String(words).slice(0, Math.max(1, most - 1))}…` : String(words));

const line = (chart, points, one, { dash = dashes[one.dash], weight = 1.5 } = {}) => {
  const path = points.map(([px, py], at) => `${at ? "L" : "M"}${chart.x(px).toFixed(1)} ${chart.y(py).toFixed(1)}`).join("");
  chart.drawing.append(svg("path", { d: path, fill: "none", stroke: colourOf(one), "stroke-width": weight, "stroke-dasharray": dash, "stroke-linejoin": "round", "data-one": one.place }));
};
const dot = (chart, px, py, one, { radius = 3.4, hollow = false } = {}) =>
  chart.drawing.append(svg("circle", { cx: chart.x(px).toFixed(1), cy: chart.y(py).toFixed(1), r: radius, fill: hollow ? "var(--paper)" : colourOf(one), stroke: colourOf(one), "stroke-width": hollow ? 1.5 : 0, "data-one": one.place }));
/** What a pointer finds at a place; `text()` is asked only then. */
const mark = (chart, px, py, one, text) => chart.marks.push({ x: chart.x(px), y: chart.y(py), one, text });

/** Show what lies nearest to the pointer, and dim the other configurations everywhere. */
const pointing = (drawing, marks, width) => {
  const tip = byId("tip");
  drawing.addEventListener("pointermove", (event) => {
    const frame = drawing.getBoundingClientRect();
    const scale = width / frame.width;
    const [px, py] = [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
    let [nearest, least] = [null, 30 * 30];
    for (const one of marks) {
      const distance = (one.x - px) ** 2 + (one.y - py) ** 2;
      if (distance < least) [nearest, least] = [one, distance];
    }
    heat(nearest && nearest.one);
    tip.hidden = !nearest;
    if (!nearest) return;
    tip.replaceChildren(swatch(nearest.one), ...nearest.text().split("\n").flatMap((words, at) => (at ? [make("br"), words] : [make("strong", { text: words })])));
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  });
  drawing.addEventListener("pointerleave", () => { tip.hidden = true; heat(null); });
};
const heatRule = document.head.appendChild(make("style"));
/** Dim every drawing of another configuration than this one. */
const heat = (one) => {
  const rule = one ? `.plot [data-one]:not([data-one="${one.place}"]) { opacity: 0.13; } [data-row="${one.place}"] { background: var(--warm); }` : "";
  if (heatRule.textContent !== rule) heatRule.textContent = rule;
};
