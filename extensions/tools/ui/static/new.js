// New job: while one types, the whole form is checked and comes back as the page without a script would show it.
import {all, around, one, texts, tell} from '/static/page.js';

/** @typedef {HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement} Control */

/** @type {HTMLFormElement} */
const form = one('#job');
/** @type {HTMLTextAreaElement} */
const yaml = one('#yaml');
/** @type {HTMLDetailsElement} */
const keys = one('.keys');
const gutter = one('.gutter');
/** @type {AbortController | undefined} */
let running;
let timer = 0;
let numbered = 0;
let unsent = false; // the server does not have all that was typed

/** @param {ParentNode} list */
const names = list =>
  all('[name]', list)
    .map(control => control.getAttribute('name'))
    .join();
/** @type {(form: HTMLFormElement) => Control[]} */
const controls = form => /** @type {Control[]} */ ([...form.elements]).filter(each => each.name);

async function check(action = 'check') {
  running?.abort();
  const mine = (running = new AbortController());
  const data = new FormData(form);
  const sent = new Map(controls(form).map(control => [control, control.value]));
  data.set('action', action);
  form.setAttribute('aria-busy', 'true');
  try {
    const answer = await fetch('/new', {
      method: 'POST',
      body: data,
      signal: mine.signal,
      headers: {accept: 'text/html'},
    });
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    if (mine === running && page.getElementById('job')) {
      if (answer.redirected) {
        // the draft: a reload and the way back find it
        history.replaceState(null, '', answer.url);
        one('.theme [name=back]').setAttribute('value', location.pathname + location.search);
        unsent = [...sent].some(([control, value]) => control.value !== value);
      }
      take(page, sent);
    } else if (mine === running) tell(page.body.innerText.trim() || texts.new.offline, true);
  } catch (error) {
    if (!(error instanceof DOMException && error.name === 'AbortError')) tell(texts.new.offline, true);
  }
  if (mine === running) form.removeAttribute('aria-busy');
}

/**
 * Shows what came back. What was changed since it was sent stays: it is sent again.
 * @param {Document} page
 * @param {Map<Control, string>} sent
 */
function take(page, sent) {
  for (const part of all('[data-part]')) {
    const fresh = page.getElementById(part.id);
    if (!fresh || fresh.innerHTML === part.innerHTML) continue;
    if (part.id !== 'keys' || names(part) !== names(fresh)) part.replaceChildren(...fresh.childNodes);
  }
  for (const fresh of controls(one('#job', page))) {
    if (fresh instanceof HTMLInputElement && fresh.type === 'radio') {
      /** @type {HTMLInputElement} */
      const radio = one(`[name=${fresh.name}][value=${fresh.value}]`, form);
      radio.checked = fresh.checked;
    }
    if (['radio', 'file', 'submit'].includes(fresh.type)) continue;
    const own = /** @type {Control | null} */ (form.elements.namedItem(fresh.name));
    if (!own || own.value === fresh.value || (sent.has(own) && sent.get(own) !== own.value)) continue;
    const at = yaml.selectionStart;
    if (own instanceof HTMLSelectElement) {
      own.replaceChildren(...fresh.children);
      own.value = own.querySelector('[selected]')?.getAttribute('value') ?? '';
    } else own.value = fresh.value;
    if (own === yaml) yaml.setSelectionRange(at, at);
  }
  for (const control of all('[aria-describedby]', form)) {
    const isBad = control.closest('.field')?.querySelector('.bad')?.textContent;
    isBad ? control.setAttribute('aria-invalid', 'true') : control.removeAttribute('aria-invalid');
  }
  for (const bad of all('.field .bad:not(:empty)', form)) bad.closest('details')?.setAttribute('open', '');
  clock();
  number();
}

// The end of the run by the clock of whoever looks, with its day where that is another one.
function clock() {
  /** @type {HTMLTimeElement[]} */
  const times = all('.sentence time');
  for (const time of times) {
    const end = new Date(time.dateTime);
    const weekday = end.toDateString() === new Date().toDateString() ? undefined : 'short';
    time.textContent = end.toLocaleString([], {hour: '2-digit', minute: '2-digit', weekday});
  }
}

// Line numbers behind the text, with the lines marked that have an error.
function number() {
  const count = yaml.value.split('\n').length;
  if (count !== numbered)
    gutter.replaceChildren(
      ...Array.from({length: count}, (_, line) =>
        Object.assign(document.createElement('span'), {textContent: String(line + 1)}),
      ),
    );
  numbered = count;
  const bad = new Set(all('.errors [data-line]').map(link => Number(link.dataset.line)));
  [...gutter.children].forEach((span, line) => span.classList.toggle('bad', bad.has(line + 1)));
  gutter.scrollTop = yaml.scrollTop;
}

/** @param {number} line counted from 1 */
function goTo(line) {
  yaml.closest('details')?.setAttribute('open', '');
  const lines = yaml.value.split('\n');
  const begin = lines.slice(0, line - 1).join('\n').length + (line > 1 ? 1 : 0);
  yaml.focus();
  yaml.setSelectionRange(begin, begin + (lines[line - 1] ?? '').length);
  yaml.scrollTop = (line - 4) * parseFloat(getComputedStyle(yaml).lineHeight);
  yaml.scrollLeft = 0;
}

/** @param {Event} event */
function later(event) {
  unsent = true;
  if (event.target === yaml) number();
  if (around(event, '[data-quiet]')) return;
  clearTimeout(timer);
  running?.abort();
  timer = setTimeout(check, 400);
}
form.addEventListener('input', later);
form.addEventListener('change', event => {
  if (event.target instanceof HTMLSelectElement) later(event);
}); // not all say 'input' of a list
form.addEventListener('click', event => {
  const link = around(event, '[data-line]');
  if (!link) return;
  event.preventDefault();
  goTo(Number(link.dataset.line));
});
form.addEventListener('submit', event => {
  clearTimeout(timer);
  running?.abort();
  form.setAttribute('aria-busy', 'true');
  if (!['check', 'search'].includes(event.submitter?.getAttribute('value') ?? '')) {
    unsent = false;
    return;
  }
  event.preventDefault();
  check();
});
keys.addEventListener('toggle', () => {
  /** @type {HTMLInputElement} */
  const shown = one('[name=all]', form);
  if (!keys.open || shown.value) return;
  shown.value = '1';
  check(unsent || location.search.includes('draft=') ? 'check' : 'look'); // a visit alone makes no draft
});
addEventListener('beforeunload', event => {
  if (unsent) event.preventDefault();
});
yaml.addEventListener('scroll', () => {
  gutter.scrollTop = yaml.scrollTop;
});
yaml.closest('details')?.addEventListener('toggle', number);
number();
clock();
if ('look' in form.dataset) check('look');
