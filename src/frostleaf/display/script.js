for (const root of document.querySelectorAll(".frostleaf:not(.on)")) {
  root.classList.add("on");
  const kids = (parent, tag) => [...parent.children].filter((each) => each.matches(tag));
  const box = (item) => kids(item, "details")[0];
  const label = (item) => (box(item) ? box(item).firstElementChild : item).querySelector("b");
  const items = (item) => (box(item) ? kids(box(item), "ul").flatMap((list) => kids(list, "li")) : []);
  const top = kids(root, "ul").flatMap((list) => kids(list, "li"));

  // A run of equal modules holds the rows of one. Each of the others is a copy, made when the run is first opened.
  const spread = (item) => {
    const run = item.dataset.run;
    if (!run) return;
    delete item.dataset.run;
    const [first, last, shown, size, width] = run.split("|");
    const [rows] = kids(box(item), "ul");
    label(item).classList.add("range");
    const list = document.createElement("ul");
    for (let number = +first; number <= +last; number++) {
      const each = item.cloneNode(true);
      label(each).textContent = number;
      label(each).classList.remove("range");
      each.querySelector("code").textContent = shown;
      const amount = each.querySelector("summary em");
      if (amount) { amount.textContent = size; amount.style.setProperty("--w", width); }
      box(each).open = number === +first;
      list.append(each);
    }
    rows.replaceWith(list);
  };
  const path = (item) => {
    const names = [];
    for (let each = item; each && root.contains(each); each = each.parentElement.closest("li")) {
      const name = label(each);
      if (name && !name.matches(".range, .root")) names.unshift(name.textContent);
    }
    return names.join(".");
  };

  const pathOf = (name) => (name.closest("li") ? path(name.closest("li")) : name.textContent);

  root.addEventListener("toggle", (event) => event.target.open && spread(event.target.parentElement), true);
  top.forEach(function visit(item) {
    if (box(item)?.open) { spread(item); items(item).forEach(visit); }
  });

  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = document.createElement("textarea");
      area.value = text;
      root.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  root.addEventListener("click", (event) => {
    const name = event.target.closest("b:not(.root, .range)");
    if (!name) return;
    event.preventDefault();
    copy(pathOf(name));
    name.classList.add("copied");
    setTimeout(() => name.classList.remove("copied"), 900);
  });
  root.addEventListener("mouseover", (event) => {
    const name = event.target.closest("b:not(.root, .range)");
    if (name) name.title = pathOf(name);
  });

  const bar = root.querySelector(".bar");
  if (!bar) continue;
  bar.hidden = false;
  const [field, all, none] = bar.children;
  const every = (open) => {
    const set = (item) => {
      if (!box(item)) return;
      if (open) spread(item);
      box(item).open = open;
      items(item).forEach(set);
    };
    top.flatMap(items).forEach(set);
  };
  all.onclick = () => every(true);
  none.onclick = () => every(false);
  let before;
  field.oninput = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const search = (item, above, around) => {
      if (words.length) spread(item);
      const name = label(item);
      const here = name.matches(".root, .range") ? around : `${around}${name.textContent}.`;
      const text = `${here} ${(box(item)?.firstElementChild ?? item).textContent}`.toLowerCase();
      const found = above || words.every((word) => text.includes(word));
      const inside = items(item).map((each) => search(each, found, here)).some(Boolean);
      item.hidden = !found && !inside;
      if (box(item)) box(item).open = words.length ? inside && !found : before.has(box(item));
      return found || inside;
    };
    before ??= new Set(root.querySelectorAll("details[open]"));
    for (const item of top) {
      const found = top.length > 1 && words.length ? search(item, false, "") : items(item).map((each) => search(each, !words.length, "")).some(Boolean);
      item.hidden = top.length > 1 && !found;
    }
    if (!words.length) before = undefined;
  };
}
