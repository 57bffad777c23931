// The data of the page, what the reader filtered and hid, and which drawings depend on that.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const state = {
  filter: "",
  keys: data.keys.map(() => ""), // the chosen value of each setting, or ""
  metric: data.headline ?? (data.metrics[0] || {}).name ?? "",
  rows: "configurations", // or "runs"
  hidden: new Set(), // indices of configurations
  columns: new Set(data.metrics.filter((metric) => metric.inSummary).map((metric) => metric.name)),
  sort: { by: null, descending: false },
  prompt: 0,
};
data.configurations.forEach((configuration, index) => {
  configuration.index = index;
  configuration.runs = data.runs.filter((run) => run.configuration === index);
  const runTexts = configuration.runs.flatMap((run) => [run.name, run.state, run.label]);
  configuration.searchText = [configuration.label, ...configuration.settings, ...runTexts].join(" ").toLowerCase();
});

const listeners = [];
let frame = 0;
let pendingChanges = new Set();
/** Call `draw` after a change of anything it depends on, once per animation frame. */
const onChange = (draw, ...dependencies) => listeners.push({ draw, dependencies });
/** Announce that "rows" (which are shown), "metric" or "table" (its order, its columns) changed. */
const changed = (what = "rows") => {
  pendingChanges.add(what);
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => {
    const due = listeners.filter(({ dependencies }) => dependencies.some((name) => pendingChanges.has(name)));
    pendingChanges = new Set();
    due.forEach(({ draw }) => draw());
  });
};
/** Draw a part of the page now if it is visible, else when it is scrolled near. */
const whenNear = (element, draw) => {
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    draw();
  }, { rootMargin: "400px" });
  element.observer?.disconnect();
  element.observer = observer;
  observer.observe(element);
};

/** Whether a configuration passes the filters, hidden by hand or not. */
const passes = (configuration) =>
  state.filter.toLowerCase().split(/\s+/).every((word) => configuration.searchText.includes(word)) &&
  state.keys.every((value, index) => !value || configuration.settings[index] === value);
const filtered = () => data.configurations.filter(passes);
const visible = () => filtered().filter((configuration) => !state.hidden.has(configuration.index));

/** An element: `make("td", {class: "x", text: "y"}, child, ...)`. Text is never taken for HTML. */
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
};

const toggleHidden = (index) => {
  if (!state.hidden.delete(index)) state.hidden.add(index);
  changed();
};
/** Show only this configuration; a second call shows all again. */
const showOnly = (index) => {
  const others = data.configurations.map((configuration) => configuration.index).filter((other) => other !== index);
  const already = state.hidden.size === others.length && !state.hidden.has(index);
  state.hidden = new Set(already ? [] : others);
  changed();
};
const resetAll = () => {
  state.filter = "";
  state.keys = state.keys.map(() => "");
  state.hidden.clear();
  byId("filter").value = "";
  byId("keys").querySelectorAll("select").forEach((select) => { select.value = ""; });
  changed();
};
