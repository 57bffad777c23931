// The controls, and the first drawing. `/` goes to the filter, Escape shows all again, j and k go through prompts.

data.keys.forEach((key, at) => {
  if (key.values.length < 2) return;
  const select = make("select", { "data-key": key.name, onchange: (event) => { state.keys[at] = event.target.value; changed(); } },
    make("option", { value: "", text: "all" }), ...key.values.map((value) => make("option", { value, text: short(value, 30) })));
  byId("keys").append(make("label", {}, make("span", { text: key.name }), select));
});
byId("filter").addEventListener("input", (event) => { state.filter = event.target.value; changed(); });
byId("metric").append(...data.metrics.map((one) => make("option", { value: one.name, text: one.name })));
byId("metric").value = state.metric;
byId("metric").addEventListener("change", (event) => {
  state.metric = event.target.value;
  state.columns.add(state.metric);
  drawColumns();
  changed("metric");
});
byId("rows").value = state.rows;
byId("rows").addEventListener("change", (event) => { state.rows = event.target.value; changed("table"); });
byId("reset").addEventListener("click", () => { resetAll(); byId("filter").focus(); });
byId("bar").addEventListener("submit", (event) => event.preventDefault());

const drawColumns = () => byId("columns").replaceChildren(...data.metrics.map((one) => {
  const box = make("input", { type: "checkbox", value: one.name, onchange: (event) => { state.columns[event.target.checked ? "add" : "delete"](one.name); changed("table"); } });
  box.checked = state.columns.has(one.name);
  return make("label", {}, box, one.name);
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
  if (event.key === "j") step(1);
  if (event.key === "k") step(-1);
});

onChange(drawTable, "rows", "metric", "table");
[drawMarks, drawSettings, drawCost].forEach((draw) => onChange(draw, "rows", "metric"));
onChange(drawLegend, "rows");
[[drawCurves, "curves"], [drawDrift, "drift"], [drawPhases, "phases"], [drawSamples, "samples"]].forEach(([draw, id]) => onChange(() => whenNear(byId(id), draw), "rows"));
new ResizeObserver(() => document.documentElement.style.setProperty("--bar", `${byId("bar").offsetHeight}px`)).observe(byId("bar"));
addEventListener("beforeprint", () => [drawCurves, drawDrift, drawPhases, drawSamples].forEach((draw) => draw()));
drawColumns();
listeners.forEach(({ draw }) => draw());
document.documentElement.dataset.ready = "";
