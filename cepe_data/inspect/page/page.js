// The rows of the page: a list that can be filtered, and the row that is chosen. Text of the corpus goes into text nodes
// only, so that nothing in it is markup.
"use strict";

(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  if (!content.rows.length) return;
  const byId = (id) => document.getElementById(id);
  const [list, article, expected, search] = ["list", "row", "expected", "search"].map(byId);
  const selects = { group: byId("group"), domain: byId("domain") };
  let shown = []; // numbers of the rows that pass the filter
  let chosen = 0; // place in `shown`
  let token = null; // the token of a teacher's row that is looked at

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const setOf = (row) => content.sets[row.set];
  const nameOf = (row) => `${setOf(row).name} row ${row.row}`;
  const number = (value) => value.toLocaleString("en-US");

  // -- text with symbols for invisible characters ---------------------------------------------------------------------

  // Control characters, separators of lines, spaces other than U+0020, formats such as those of direction, private and
  // unassigned characters, and what stands for broken UTF-8.
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}\uFFFD]|(?! )\p{Zs}/gu;
  const SYMBOLS = { "\n": "↵", "\t": "→", "\ufffd": "\ufffd" };
  const codeOf = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

  const addVisible = (parent, text) => {
    let start = 0;
    for (const { 0: character, index } of text.matchAll(HIDDEN)) {
      const symbol = element("span", "hidden-character", SYMBOLS[character] ?? codeOf(character));
      symbol.title = codeOf(character);
      parent.append(text.slice(start, index), symbol, "\n\t".includes(character) ? character : "");
      start = index + character.length;
    }
    parent.append(text.slice(start));
  };

  const addText = (parent, text, query) => {
    const lower = text.toLowerCase();
    // A few characters change their length in lower case; then places in `lower` are not places in `text`.
    if (!query || lower.length !== text.length) return addVisible(parent, text);
    let start = 0;
    for (let place = lower.indexOf(query); place >= 0; place = lower.indexOf(query, start)) {
      addVisible(parent, text.slice(start, place));
      const found = element("mark", "found");
      addVisible(found, text.slice(place, place + query.length));
      parent.append(found);
      start = place + query.length;
    }
    addVisible(parent, text.slice(start));
  };

  // -- a row ----------------------------------------------------------------------------------------------------------

  const addSegment = (parent, row, [kind, value, place], query) => {
    if (kind === "") return addText(parent, value, query);
    if (kind === "cut") return parent.append(element("span", "cut", `… ${number(value)} tokens …`));
    const made = element(kind === "shared" ? "mark" : "span", kind);
    if (kind === "token") {
      made.dataset.place = place;
      const before = place > 0 ? row.expected[place - 1] : null; // what was expected where this token came
      if (before) made.dataset.level = before.p === null ? 0 : Math.min(4, 1 + Math.floor(before.p * 4));
    }
    addText(made, value || "\u00b7", query);
    parent.append(made);
  };

  const showRow = (row) => {
    const query = search.value.toLowerCase();
    article.replaceChildren();
    hideExpected();
    article.append(element("h3", "", nameOf(row)));
    for (const line of row.source) article.append(element("p", "source", line));
    if (row.expected) article.append(element("p", "note", "The stronger the shade of a token, the less the teacher expected it."));
    for (const text of row.texts) {
      const figure = element("section", "text");
      const heading = element("h4", "", `${text.title}, ${number(text.tokens)} tokens`);
      const body = element("pre");
      text.segments.forEach((segment) => addSegment(body, row, segment, query));
      figure.append(heading, body);
      article.append(figure);
      if (body.scrollHeight > body.clientHeight + 1) figure.append(unfoldButton(body));
    }
  };

  const unfoldButton = (body) => {
    const button = element("button", "", "show all of it");
    button.type = "button";
    button.addEventListener("click", () => {
      button.textContent = body.classList.toggle("unfolded") ? "fold" : "show all of it";
    });
    return button;
  };

  // -- what the teacher expects ---------------------------------------------------------------------------------------

  // A token by itself: its spaces are visible, too.
  const addPiece = (parent, text) => addVisible(parent, text.replaceAll(" ", "␣"));
  const percent = (share) => share === null ? "not a number" : `${(100 * share).toPrecision(3)} %`;

  const showExpected = (target) => {
    const row = content.rows[shown[chosen]];
    const one = row.expected[Number(target.dataset.place)];
    token?.classList.remove("looked-at");
    token = target;
    token.classList.add("looked-at");
    const what = row.samples ? `shares of ${row.samples} draws after this token:` : "expected after this token:";
    expected.replaceChildren(element("p", "", what));
    const table = element("table");
    const addLine = (text, share, isTrue) => {
      const line = element("tr", isTrue ? "true" : "");
      const piece = element("td");
      addPiece(piece, text);
      line.append(piece, element("td", "number", share));
      table.append(line);
    };
    one.best.forEach(([text, share], place) => addLine(text, percent(share), place === one.rank));
    expected.append(table);
    const next = element("p", "", one.true === "" ? "This is the end of the row." : "next: ");
    if (one.true !== "") {
      const piece = element("code", "true");
      addPiece(piece, one.true);
      const ofOthers = `, not among the top ${row.topk}, which leave ${percent(one.rest)} to all others`;
      const outside = row.samples ? ", which was not sampled" : ofOthers;
      next.append(piece, one.rank === null ? outside : `, rank ${one.rank + 1}, ${percent(one.p)}`);
    }
    expected.append(next);
    expected.hidden = false;
    const place = target.getBoundingClientRect();
    const left = Math.max(4, Math.min(place.left, document.documentElement.clientWidth - expected.offsetWidth - 4));
    const isBelow = place.bottom + expected.offsetHeight + 8 < window.innerHeight;
    expected.style.left = `${left}px`;
    expected.style.top = `${isBelow ? place.bottom + 4 : Math.max(4, place.top - expected.offsetHeight - 4)}px`;
  };

  const hideExpected = () => {
    token?.classList.remove("looked-at");
    token = null;
    expected.hidden = true;
  };

  const moveToken = (step) => {
    const tokens = [...article.querySelectorAll(".token")];
    if (!tokens.length) return false;
    const place = token ? Number(token.dataset.place) + step : 0;
    const target = tokens[Math.max(0, Math.min(tokens.length - 1, place))];
    target.scrollIntoView({ block: "nearest" });
    showExpected(target);
    return true;
  };

  // -- the list -------------------------------------------------------------------------------------------------------

  const textOf = (row) =>
    [nameOf(row), ...row.source, ...row.texts.flatMap(({ segments }) => wholeText(segments))].join("\n").toLowerCase();
  const wholeText = (segments) => segments.map(([kind, value]) => (kind === "cut" ? "\n" : value)).join("");
  const texts = content.rows.map(textOf);

  const excerpt = (row) => {
    const ofRow = row.texts.find(({ title }) => /^(decoder|query)/.test(title)) ?? row.texts[0];
    return wholeText(ofRow?.segments ?? []).replace(/[\p{C}\p{Z}]+/gu, " ").trim().slice(0, 90);
  };

  const entries = content.rows.map((row, place) => {
    const entry = element("li");
    entry.setAttribute("role", "option");
    const name = element("span", "name");
    const path = element("span", "path");
    path.append(element("bdi", "", setOf(row).name));
    name.append(path, element("span", "", `row ${row.row}`));
    entry.append(name, element("span", "excerpt", excerpt(row)));
    entry.addEventListener("click", () => choose(shown.indexOf(place)));
    return entry;
  });

  const filter = () => {
    const query = search.value.toLowerCase();
    const before = shown[chosen];
    shown = content.rows.flatMap((row, place) => {
      const set = setOf(row);
      const passes = Object.entries(selects).every(([name, select]) => !select.value || set[name] === select.value);
      return passes && texts[place].includes(query) ? [place] : [];
    });
    list.replaceChildren(...shown.map((place) => entries[place]));
    byId("count").textContent = `${number(shown.length)} of ${number(content.rows.length)} rows`;
    choose(Math.max(0, shown.indexOf(before)));
  };

  const choose = (place) => {
    chosen = Math.max(0, Math.min(shown.length - 1, place));
    const entry = entries[shown[chosen]];
    if (!entry) return article.replaceChildren(element("p", "note", "No row is like this."));
    for (const other of list.querySelectorAll("[aria-selected]")) other.removeAttribute("aria-selected");
    entry.setAttribute("aria-selected", "true");
    // Not scrollIntoView, which would scroll the page, too.
    list.scrollTop = Math.max(Math.min(list.scrollTop, entry.offsetTop), entry.offsetTop + entry.offsetHeight - list.clientHeight);
    showRow(content.rows[shown[chosen]]);
  };

  // -- what the reader does -------------------------------------------------------------------------------------------

  for (const [name, select] of Object.entries(selects)) {
    const values = new Set(content.rows.map((row) => setOf(row)[name]));
    for (const value of values) select.append(new Option(value, value));
    select.addEventListener("change", filter);
  }
  search.addEventListener("input", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const event of ["mouseover", "click"]) {
    article.addEventListener(event, ({ target }) => target.closest(".token") && showExpected(target.closest(".token")));
  }
  article.addEventListener("mouseleave", hideExpected);
  window.addEventListener("scroll", hideExpected, { passive: true });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape") {
      if (!expected.hidden) return hideExpected();
      search.value = "";
      search.blur();
      return filter();
    }
    if (event.target.closest("input, select")) return;
    const isInList = document.activeElement === list;
    const keys = {
      j: () => choose(chosen + 1),
      k: () => choose(chosen - 1),
      "/": () => search.focus(),
      ArrowRight: () => moveToken(1),
      ArrowLeft: () => moveToken(-1),
      ...(isInList && { ArrowDown: () => choose(chosen + 1), ArrowUp: () => choose(chosen - 1) }),
    };
    if (event.key in keys && keys[event.key]() !== false) event.preventDefault();
  });

  filter();
})();
