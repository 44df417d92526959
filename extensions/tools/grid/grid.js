// The grid: favourites, hidden rows and columns, the large image, and the keys for all of it.
(function () {
  /**
   * @typedef {{name: string, lora: string | null, strength: number | null}} Column
   * @typedef {{prompt: string, cfg: number, seed: number}} Row
   * @typedef {HTMLTableCellElement} Cell
   */
  /** @type {{id: string, files: (string | null)[][], columns: Column[], rows: Row[]}} */
  const data = pageData();
  const key = 'atelier-grid-' + data.id;
  /** @param {string} id */
  const byId = id => /** @type {HTMLElement} */ (document.getElementById(id));
  const grid = byId('grid');
  const box = byId('box');
  /** @type {Record<'row' | 'column', Set<number>>} */
  const hidden = {row: new Set(), column: new Set()};
  /** @type {Cell | null} */
  let at = null;
  /** @type {Set<string | null>} */
  let favourites = new Set();
  function recall() {
    try {
      favourites = new Set(JSON.parse(localStorage.getItem(key) || '[]'));
    } catch (error) {
      /* not allowed here */
    }
  }

  /** @type {(row: number, column: number) => Cell | null} */
  const cellAt = (row, column) => grid.querySelector(`td[data-row="${row}"][data-column="${column}"]`);
  /** @param {Cell} cell */
  const place = cell => [Number(cell.dataset.row), Number(cell.dataset.column)];
  /** @param {Cell} cell */
  const fileOf = cell => {
    const [row, column] = place(cell);
    return data.files[row][column];
  };
  /** @param {Cell} cell */
  const imageOf = cell => cell.querySelector('img');

  /** @param {Cell} cell */
  function describe(cell) {
    const [row, column] = place(cell);
    const {name, strength} = data.columns[column];
    const {prompt, cfg, seed} = data.rows[row];
    return `${name}${strength === null ? '' : ' x ' + strength} | cfg ${cfg}, seed ${seed} | ${prompt}`;
  }

  function show() {
    for (const cell of grid.querySelectorAll('td')) {
      const [row, column] = place(cell);
      const chosen = favourites.has(fileOf(cell));
      cell.hidden = hidden.column.has(column);
      cell.classList.toggle('chosen', chosen);
      cell.classList.toggle('at', cell === at);
      const star = cell.querySelector('.star');
      if (star) star.setAttribute('aria-pressed', String(chosen));
    }
    for (const head of grid.querySelectorAll('th')) {
      if (head.dataset.column) head.hidden = hidden.column.has(Number(head.dataset.column));
    }
    for (const line of grid.querySelectorAll('tr')) line.hidden = hidden.row.has(Number(line.dataset.row ?? -1));
    const away = hidden.row.size + hidden.column.size;
    byId('show').hidden = away === 0;
    byId('show').textContent = `Show all (${away} hidden)`;
    const marked = choice().length;
    byId('count').textContent = marked === 1 ? '1 favourite' : `${marked} favourites`;
    if (!box.hidden && at) {
      byId('large').setAttribute('src', imageOf(at)?.src ?? '');
      byId('told').textContent = describe(at);
      box.classList.toggle('chosen', favourites.has(fileOf(at)));
    }
  }

  // The favourites in the order of the grid, as they are exported.
  function choice() {
    /** @type {(Partial<Column & Row> & {file: string | null})[]} */
    const found = [];
    data.files.forEach((files, row) =>
      files.forEach((file, column) => {
        if (favourites.has(file)) {
          const {lora, strength} = data.columns[column];
          found.push({file, lora, strength, ...data.rows[row]});
        }
      }),
    );
    return found;
  }

  /** @param {Cell | null} cell */
  function mark(cell) {
    if (!cell || !imageOf(cell)) return;
    const file = fileOf(cell);
    recall(); // another window may have marked some
    if (!favourites.delete(file)) favourites.add(file);
    try {
      localStorage.setItem(key, JSON.stringify([...favourites]));
    } catch (error) {
      /* kept for this visit */
    }
    show();
  }

  /** @param {Cell} cell */
  function goTo(cell) {
    at = cell;
    show();
    if (box.hidden) {
      const button = cell.querySelector('button');
      if (button) button.focus();
      cell.scrollIntoView({block: 'nearest', inline: 'nearest'});
    }
  }

  /**
   * The next image in a direction that is neither hidden nor missing.
   * @param {number} down
   * @param {number} right
   */
  function move(down, right) {
    if (!at) {
      const first = [...grid.querySelectorAll('td')].find(cell => imageOf(cell) && cell.offsetParent !== null);
      if (first) goTo(first);
      return;
    }
    let [row, column] = place(at);
    for (;;) {
      row += down;
      column += right;
      const cell = cellAt(row, column);
      if (!cell) return;
      if (imageOf(cell) && !hidden.row.has(row) && !hidden.column.has(column)) {
        goTo(cell);
        return;
      }
    }
  }

  /** @param {Cell} cell */
  function open(cell) {
    if (!imageOf(cell)) return;
    at = cell;
    box.hidden = false;
    show();
    byId('close').focus();
  }

  function close() {
    if (box.hidden) return;
    box.hidden = true;
    byId('large').removeAttribute('src');
    if (at) goTo(at);
  }

  /** @param {HTMLElement} button */
  function hide(button) {
    const head = button.closest('th');
    const row = head?.closest('tr')?.dataset.row;
    if (row) hidden.row.add(Number(row));
    else hidden.column.add(Number(head?.dataset.column));
    if (at) {
      const [row, column] = place(at);
      if (hidden.row.has(row) || hidden.column.has(column)) at = null;
    }
    show();
  }

  function save() {
    const text = JSON.stringify(choice(), null, 2) + '\n';
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
    link.download = 'favourites.json';
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  grid.addEventListener('click', event => {
    const button = /** @type {Element} */ (event.target).closest('button');
    const cell = button?.closest('td');
    if (button?.classList.contains('hide')) hide(button);
    else if (cell && button?.classList.contains('star')) mark(cell);
    else if (cell && button?.classList.contains('open')) open(cell);
  });
  byId('show').addEventListener('click', () => {
    hidden.row.clear();
    hidden.column.clear();
    show();
  });
  byId('export').addEventListener('click', save);
  byId('size').addEventListener('input', event => {
    grid.style.setProperty('--size', /** @type {HTMLInputElement} */ (event.target).value + 'px');
  });
  byId('previous').addEventListener('click', () => move(0, -1));
  byId('next').addEventListener('click', () => move(0, 1));
  byId('mark').addEventListener('click', () => mark(at));
  byId('close').addEventListener('click', close);

  /** @type {Record<string, [down: number, right: number]>} */
  const moves = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
  document.addEventListener('keydown', event => {
    const isTyping = /** @type {Element} */ (event.target).matches('input');
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping) return;
    if (moves[event.key]) move(...moves[event.key]);
    else if (event.key === 'Escape') close();
    else if (event.key === 'f' || event.key === 'F') mark(at);
    else return;
    event.preventDefault();
  });
  window.addEventListener('storage', () => {
    recall();
    show();
  });
  recall();
  show();
})();
