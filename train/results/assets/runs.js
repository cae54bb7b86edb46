// Shows one run when its name is clicked: what it ran on, its log, and its configuration.
function element(tag, text, ...children) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}
function pairs(entries) {
  const rows = entries.map(([name, value]) =>
    element("tr", "", element("th", name), value instanceof Node ? element("td", "", value)
      : element("td", value)));
  return element("table", "", element("tbody", "", ...rows));
}
const {shared, runs} = JSON.parse(document.getElementById("data").textContent);
const dialog = document.getElementById("run");
for (const button of document.querySelectorAll("button[data-run]")) {
  button.addEventListener("click", () => {
    const run = runs[button.dataset.run];
    const facts = Object.entries(run.facts);
    for (const [name, address] of Object.entries(run.links)) {
      const link = element("a", address);
      link.href = address;
      facts.push([name, link]);
    }
    const whole = Object.entries({...shared, ...run.differs}).sort();
    const differs = Object.entries(run.differs).sort();
    document.getElementById("run-name").textContent = button.textContent;
    document.getElementById("run-content").replaceChildren(
      pairs(facts),
      element("h3", "Settings that differ between runs"),
      differs.length ? pairs(differs) : element("p", "none"),
      element("details", "", element("summary", `All ${whole.length} settings`), pairs(whole)));
    dialog.showModal();
  });
}
