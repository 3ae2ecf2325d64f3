"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const value = (row, at) => {
    const cell = row.cells[at];
    const raw = cell.dataset.v ?? cell.textContent.trim();
    const asNumber = raw === "" ? NaN : Number(raw);
    return Number.isNaN(asNumber) ? raw : asNumber;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b));
  };

  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    const heads = all("thead th", table);
    heads.forEach((head, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const first = "first" in head.dataset ? head.dataset.first : "descending";
        const other = first === "descending" ? "ascending" : "descending";
        const next = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((h) => h.setAttribute("aria-sort", h === head ? next : "none"));
        const sign = next === "ascending" ? 1 : -1;
        const missing = (row) => value(row, at) === "";
        const rows = [...body.rows].sort((a, b) =>
          missing(a) || missing(b) ? missing(a) - missing(b) : sign * compare(value(a, at), value(b, at)));
        body.append(...rows);
      });
    });
  }

  for (const form of all("form.filter")) {
    const table = document.getElementById(form.dataset.table);
    const [text, moved] = [form.querySelector("[type=search]"), form.querySelector("[type=checkbox]")];
    const count = form.querySelector("output");
    const rows = [...table.tBodies[0].rows];
    const apply = () => {
      const wanted = text.value.trim().toLowerCase();
      let left = 0;
      for (const row of rows) {
        const fits = row.cells[0].textContent.toLowerCase().includes(wanted);
        row.hidden = !fits || (moved.checked && !("moved" in row.dataset));
        left += !row.hidden;
      }
      count.textContent = `${left} of ${rows.length} emotions`;
    };
    form.hidden = false;
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  for (const cue of all(".cue")) {
    const box = cue.nextElementSibling;
    const show = () => { cue.hidden = box.scrollLeft + box.clientWidth > box.scrollWidth - 8; };
    box.addEventListener("scroll", show);
    addEventListener("resize", show);
    show();
  }

  for (const box of all(".tokens")) {
    const tokens = all("span[title]", box);
    const said = box.parentElement.querySelector("output");
    let at = -1;
    const show = (next) => {
      tokens[at]?.classList.remove("at");
      at = Math.max(0, Math.min(tokens.length - 1, next));
      tokens[at].classList.add("at");
      said.textContent = `“${tokens[at].textContent.replace(/\n/g, "")}” ${tokens[at].title}`;
    };
    if (!tokens.length) continue;
    box.tabIndex = 0;
    box.addEventListener("click", (event) => {
      const found = tokens.indexOf(event.target);
      if (found >= 0) show(found);
    });
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      show(at + step);
    });
  }

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    closed.forEach((d) => { d.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((d) => { d.open = false; }));
})();
