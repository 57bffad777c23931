// The controls, and the first drawing. Keys: / focuses the filter, Escape shows all again, j and k step through prompts.

data.keys.forEach((key, index) => {
  if (key.values.length < 2) return;
  const select = make("select", { "data-key": key.name, onchange: (event) => { state.keys[index] = event.target.value; changed(); } },
    make("option", { value: "", text: "all" }), ...key.values.map((value) => make("option", { value, text: truncate(value, 30) })));
  byId("keys").append(make("label", {}, make("span", { text: key.name }), select));
});
byId("filter").addEventListener("input", (event) => { state.filter = event.target.value; changed(); });
byId("metric").append(...data.metrics.map((metric) => make("option", { value: metric.name, text: metric.name })));
byId("metric").value = state.metric;
byId("metric").addEventListener("change", (event) => {
  state.metric = event.target.value;
  state.columns.add(state.metric);
  drawColumnMenu();
  changed("metric");
});
byId("rows").value = state.rows;
byId("rows").addEventListener("change", (event) => { state.rows = event.target.value; changed("table"); });
byId("reset").addEventListener("click", () => { resetAll(); byId("filter").focus(); });
byId("bar").addEventListener("submit", (event) => event.preventDefault());

const drawColumnMenu = () => byId("columns").replaceChildren(...data.metrics.map(({ name }) => {
  const box = make("input", { type: "checkbox", value: name, onchange: (event) => { state.columns[event.target.checked ? "add" : "delete"](name); changed("table"); } });
  box.checked = state.columns.has(name);
  return make("label", {}, box, name);
}));
document.addEventListener("click", (event) => {
  const menu = byId("columns-menu");
  if (menu.open && !menu.contains(event.target)) menu.open = false;
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (byId("columns-menu").open) byId("columns-menu").open = false;
    else resetAll();
    return;
  }
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox") return;
  if (event.key === "/") { event.preventDefault(); byId("filter").focus(); }
  if (event.key === "j") stepPrompt(1);
  if (event.key === "k") stepPrompt(-1);
});

onChange(drawTable, "rows", "metric", "table");
[drawMarks, drawSettings, drawCost].forEach((draw) => onChange(draw, "rows", "metric"));
onChange(drawLegend, "rows");
[[drawCurves, "curves"], [drawDrift, "drift"], [drawPhases, "phases"], [drawSamples, "samples"]].forEach(([draw, id]) => onChange(() => whenNear(byId(id), draw), "rows"));
new ResizeObserver(() => document.documentElement.style.setProperty("--bar", `${byId("bar").offsetHeight}px`)).observe(byId("bar"));
addEventListener("beforeprint", () => [drawCurves, drawDrift, drawPhases, drawSamples].forEach((draw) => draw()));
drawColumnMenu();
listeners.forEach(({ draw }) => draw());
document.documentElement.dataset.ready = "";
