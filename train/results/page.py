"""The report's page: its template, its style, and the script that sorts and filters its tables."""

CSS = """
:root { color-scheme: light dark; --ink: #1f2329; --soft: #626b76; --paper: #ffffff;
  --panel: #f6f7f9; --line: #d5d9de; --best: #dcefe4; --bad: #b3261e; --link: #0a5fb4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa4b0; --paper: #14171b;
  --panel: #1c2026; --line: #353c45; --best: #1d3d2c; --bad: #ff8a80; --link: #7cb8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p { max-width: 48rem; } .soft, figcaption { color: var(--soft); font-size: .87rem; }
nav { margin: .9rem 0 0; } nav a { margin-right: 1.1rem; } a { color: var(--link); }
.counts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0;
  list-style: none; }
.counts li { background: var(--panel); border-radius: 6px; padding: .35rem .8rem; }
.counts b { font-size: 1.15rem; font-variant-numeric: tabular-nums; margin-right: .35rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .75rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
th { position: sticky; top: 0; background: var(--paper); padding: 0; font-weight: 600; }
th button { all: unset; cursor: pointer; padding: .32rem .75rem; display: block; width: 100%;
  box-sizing: border-box; text-align: inherit; }
th button:hover, th button:focus-visible { color: var(--link); }
th button::after { content: "\\2195"; opacity: .3; margin-left: .3em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
.text { text-align: left; } tbody tr:hover td { background: var(--panel); }
td.best, tbody tr:hover td.best { background: var(--best); font-weight: 650; }
td.of-all { text-decoration: underline; }
td small { color: var(--soft); font-weight: 400; } .bad, td .bad { color: var(--bad); }
td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; } figure svg { max-width: 100%; height: auto; }
ul.notes { margin: .5rem 0; padding-left: 1.1rem; color: var(--soft); font-size: .87rem;
  overflow-wrap: anywhere; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; } .tables > div { max-width: 100%; }
input { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; padding: .3rem .6rem; width: min(26rem, 100%); margin: 0 0 .7rem; }
details summary { cursor: pointer; }
@media print { input, nav, th button::after { display: none; } body { max-width: none; } }
"""

JS = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // missing values last
      const least = x - y;
      return (down ? -1 : 1) * (isNaN(least) ? x.localeCompare(y, "en", {numeric: true}) : least);
    };
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...[...body.rows].sort(order));
  }));
}
const filter = document.getElementById("filter");
filter?.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\\s+/);
  for (const row of document.getElementById("runs").tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
  }
});
"""

TEMPLATE = """
{%- macro grid(table, id="") -%}
<div class="scroll"><table{% if id %} id="{{ id }}"{% endif %}>
<thead><tr>{% for head in table.heads -%}
<th scope="col"{% if table.rows and "text" in table.rows[0][loop.index0].kind %} class="text"
{%- endif %}><button>{{ head }}</button></th>
{%- endfor %}</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr>{% for cell in row %}<td
{%- if cell.kind %} class="{{ cell.kind }}"{% endif %}
{%- if cell.value is not none %} data-v="{{ cell.value }}"{% endif %}>{{ cell.text }}
{%- if cell.remark %} <small{% if cell.bad %} class="bad"{% endif %}>{{ cell.remark }}</small>
{%- endif %}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endmacro -%}
{%- macro picture(drawn) -%}
<figure>{{ drawn.svg }}<figcaption>{{ drawn.caption }}</figcaption></figure>
{%- endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title><link rel="icon" href="data:,"><style>{{ css }}</style></head>
<body>
<header><h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
<ul class="counts">{% for state, count in counts %}
<li{% if state in ("failed", "unreadable") %} class="bad"{% endif %}><b>{{ count }}</b>{{ state }}
</li>{% endfor %}</ul>
<nav>{% for section in sections %}<a href="#{{ section.id }}">{{ section.title }}</a>
{% endfor %}{% if curves %}<a href="#steps">Over the steps</a>{% endif %}
{% if problems %}<a href="#problems">Problems</a>{% endif %}
<a href="#all-runs">Runs</a></nav></header>
<main>
{%- for section in sections %}
<section><h2 id="{{ section.id }}">{{ section.title }}</h2>
{{ grid(section.summary, section.id ~ "-summary") }}
{%- if section.legend %}<p class="soft">{{ section.legend }}</p>{% endif %}
{%- for drawn in section.pictures %}{{ picture(drawn) }}{% endfor %}
<div class="tables">
{%- for scale in section.scales %}
<div><h3>{{ scale.title }}</h3>{{ grid(scale.table) }}
{%- if scale.notes %}
<ul class="notes">{% for note in scale.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
</div>
{%- endfor %}
</div></section>
{%- endfor %}
{%- if curves %}
<section><h2 id="steps">Over the steps</h2>{% for drawn in curves %}{{ picture(drawn) }}{% endfor %}
</section>
{%- endif %}
{%- if problems %}
<section><h2 id="problems">Problems</h2>{{ grid(problems, "reasons") }}</section>
{%- endif %}
<section><h2 id="all-runs">Runs</h2>
<input id="filter" type="search" placeholder="Show runs that contain, e.g. maxP failed"
 aria-label="Show runs that contain">
{{ grid(runs, "runs") }}</section>
</main>
<script>{{ js }}</script>
</body></html>
"""
