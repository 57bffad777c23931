// What is shown: the data of the page, what the reader filtered and hid, and who is told when that changes.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const state = {
  filter: "",
  keys: data.keys.map(() => ""),
  metric: data.headline ?? (data.metrics[0] || {}).name ?? "",
  rows: "configurations", // or "cells", single runs
  hidden: new Set(), // places of configurations
  columns: new Set(data.metrics.filter((one) => one.first).map((one) => one.name)),
  sort: { by: null, down: false },
  prompt: 0,
};
data.configurations.forEach((one, place) => {
  one.place = place;
  one.cells = data.cells.filter((cell) => cell.configuration === place);
  one.words = [one.label, ...one.settings, ...one.cells.flatMap((cell) => [cell.name, cell.state, cell.label])].join(" ").toLowerCase();
});
data.cells.forEach((cell, place) => { cell.place = place; });

const listeners = [];
let asked = 0;
let wanted = new Set();
/** Call `draw` after a change of what it depends on, once a frame however many changes there were. */
const onChange = (draw, ...dependsOn) => listeners.push({ draw, dependsOn });
/** Tell that "rows" (which are shown), "metric" or "table" (its order, its columns) changed. */
const changed = (what = "rows") => {
  wanted.add(what);
  cancelAnimationFrame(asked);
  asked = requestAnimationFrame(() => {
    const due = listeners.filter(({ dependsOn }) => dependsOn.some((one) => wanted.has(one)));
    wanted = new Set();
    due.forEach(({ draw }) => draw());
  });
};
/** Draw a part of the page now if it can be seen, else when it first comes near. */
const whenNear = (element, draw) => {
  const watching = new IntersectionObserver((found) => {
    if (!found.some((one) => one.isIntersecting)) return;
    watching.disconnect();
    draw();
  }, { rootMargin: "400px" });
  element.watching?.disconnect();
  element.watching = watching;
  watching.observe(element);
};

/** Whether a configuration passes the filters; what was hidden by hand passes them too. */
const passes = (one) =>
  state.filter.toLowerCase().split(/\s+/).every((word) => one.words.includes(word)) &&
  state.keys.every((wanted, at) => !wanted || one.settings[at] === wanted);
const filtered = () => data.configurations.filter(passes);
const visible = () => filtered().filter((one) => !state.hidden.has(one.place));

/** An element: `make("td", {class: "x", text: "y"}, child, ...)`. Text is never taken for HTML. */
const make = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
};

const toggleHidden = (place) => {
  if (!state.hidden.delete(place)) state.hidden.add(place);
  changed();
};
/** Show this configuration alone; again, and all are back. */
const alone = (place) => {
  const others = data.configurations.map((one) => one.place).filter((other) => other !== place);
  const already = state.hidden.size === others.length && !state.hidden.has(place);
  state.hidden = new Set(already ? [] : others);
  changed();
};
const resetAll = () => {
  state.filter = "";
  state.keys = state.keys.map(() => "");
  state.hidden.clear();
  byId("filter").value = "";
  byId("keys").querySelectorAll("select").forEach((one) => { one.value = ""; });
  changed();
};
