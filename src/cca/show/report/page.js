"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);

  // ---- theme ----
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const printing = matchMedia("print");
  let chosen = null;
  const ink = () => getComputedStyle(root).getPropertyValue("--soft").trim();
  function applyTheme() {
    root.dataset.theme = printing.matches ? "light" : (chosen ?? (dark.matches ? "dark" : "light"));
    root.style.colorScheme = root.dataset.theme;
    for (const chart of charts) if (chart.data) Plotly.relayout(chart, { "font.color": ink() });
  }

  // ---- figures ----
  const charts = [...document.querySelectorAll(".chart")];
  const figures = read("charts");
  function draw() {
    for (const chart of charts) {
      const { data, layout } = figures[chart.dataset.chart];
      layout.font.color = ink();
      // a drag across a figure scrolls the page, on a phone as well
      Plotly.newPlot(chart, data, { ...layout, dragmode: false }, { responsive: true, displayModeBar: false });
    }
  }
  function fit() {
    for (const chart of charts) Plotly.relayout(chart, { width: chart.clientWidth });
  }

  // ---- pivots: model output is set as text, never as markup ----
  const pivots = read("pivot-data");
  const list = byId("list"), search = byId("search"), template = byId("template"), outcome = byId("outcome"), kind = byId("kind");
  const visible = (token) => token.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "␀";
  function element(tag, text = "", className = "", ...children) {
    const made = document.createElement(tag);
    if (text) made.append(text);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }
  const haystacks = pivots.map((p) => JSON.stringify(Object.values(p)).toLowerCase());
  const items = pivots.map((p, index) => {
    const item = element("li", p.problem, "", element("small",
      `${visible(p.desired.token)} not ${visible(p.undesired.token)} · ${p.kind} · ${p.outcome}`));
    item.id = `pivot-${index}`;
    item.setAttribute("role", "option");
    item.addEventListener("click", () => select(index));
    return item;
  });
  let shown = [], current = -1;

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = pivots.map((_, i) => i).filter((i) =>
      (!template.value || pivots[i].template === template.value) &&
      (!outcome.value || pivots[i].outcome === outcome.value) &&
      (!kind.value || pivots[i].kind === kind.value) &&
      words.every((word) => haystacks[i].includes(word)));
    list.replaceChildren(...shown.map((i) => items[i]));
    byId("count").textContent = `${shown.length} of ${pivots.length}`;
    select(shown.includes(current) ? current : (shown[0] ?? -1));
  }

  function select(index) {
    items[current]?.removeAttribute("aria-selected");
    current = index;
    const item = items[index];
    if (!item) {
      list.removeAttribute("aria-activedescendant");
      byId("pivot").replaceChildren(element("p", "No pivot fits.", "note"));
      return;
    }
    item.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", item.id);
    const top = item.offsetTop - list.offsetTop;  // scrollIntoView would move the page as well
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + item.offsetHeight - list.clientHeight;
    byId("pivot").replaceChildren(...described(pivots[index]));
  }

  function described(p) {
    const slip = p.on_slip === null ? "" : p.on_slip ? "; it is the planted slip's own token" : "; it is not the planted slip's token";
    const facts = `template ${p.template}, ${p.split}, token ${p.position + 1} of the trace, kind: ${p.kind}; the greedy trace is ` +
      `${p.greedy_correct ? "right" : "wrong"}, the sampled one ${p.greedy_correct ? "wrong" : "right"}${slip}`;
    const continued = (name, className, sign, c) => element("div", "", `trace ${className}`,
      element("b", `${sign} ${name} `), element("mark", visible(c.token)), c.text,
      element("div", "", "", element("b", `answer ${c.answer || "none"}: ${c.verdict}`)));
    return [
      element("h3", `${p.problem}: ${p.outcome}`),
      element("p", facts, "note"),
      element("blockquote", p.question),
      element("p", `Gold answer ${p.gold}. The trace up to the pivot:`, "note"),
      element("div", p.before.trimStart() || "(the pivot is the first token)", "trace"),
      continued("desired", "good", "✓", p.desired),
      continued("undesired", "bad", "✗", p.undesired),
      odds(p),
    ];
  }

  function percent(share) {
    const text = `${(100 * share).toFixed(1)}%`;  // what is neither none nor all does not read as that
    return text === "0.0%" && share > 1e-12 ? "<0.1%" : text === "100.0%" && share < 1 - 1e-12 ? ">99.9%" : text;
  }

  function odds(p) {
    const table = element("table", "", "odds");
    table.append(element("tr", "", "", ...["probability", "base", "updated"].map((text) => element("th", text))));
    for (const [name, c] of [["desired", p.desired], ["undesired", p.undesired]]) {
      const row = element("tr", "", "", element("th", `${name} ${visible(c.token)}`));
      for (const share of [c.base, c.updated]) {
        const cell = element("td", share === null ? "not evaluated" : percent(share));
        if (share !== null) {
          const bar = element("span", "", "bar");
          bar.style.width = `${100 * share}%`;
          cell.append(bar);
        }
        row.append(cell);
      }
      table.append(row);
    }
    return table;
  }

  function move(by) {
    if (shown.length) select(shown[Math.min(shown.length - 1, Math.max(0, shown.indexOf(current) + by))]);
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select, textarea");
    const arrow = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape" && typing) {
      search.value = template.value = outcome.value = kind.value = "";
      filter();
      list.focus();
    } else if (event.key === "/" && !typing) {
      search.focus();
    } else if (arrow && (event.target === list || (event.target === search && Math.abs(arrow) === 1))) {
      move(arrow);
    } else if ((event.key === "j" || event.key === "k") && !typing) {
      move(event.key === "j" ? 1 : -1);
    } else {
      return;
    }
    event.preventDefault();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const input of [search, template, outcome, kind]) input.addEventListener("input", filter);

  applyTheme();
  draw();
  filter();
  dark.addEventListener("change", applyTheme);
  byId("theme").addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    applyTheme();
  });
  // paper has another width than the window
  printing.addEventListener("change", () => { applyTheme(); fit(); });
  addEventListener("afterprint", () => { for (const chart of charts) Plotly.relayout(chart, { width: null, autosize: true }); });
})();
