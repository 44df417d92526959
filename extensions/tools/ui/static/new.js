// New job: while one types, the whole form is checked and comes back as the page without a script would show it.
import {texts, tell} from '/static/page.js';

const form = document.getElementById('job'),
  yaml = form.elements.yaml;
const gutter = form.querySelector('.gutter'),
  keys = form.querySelector('.keys');
let running,
  timer,
  numbered = 0,
  unsent = false; // unsent: the server does not have all that was typed

const names = list => [...list.querySelectorAll('[name]')].map(control => control.name).join();

async function check(action = 'check') {
  running?.abort();
  const mine = (running = new AbortController());
  const data = new FormData(form),
    sent = new Map();
  for (const control of form.elements) if (control.name) sent.set(control, control.value);
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
        document.querySelector('.theme [name=back]').value = location.pathname + location.search;
        unsent = [...sent].some(([control, value]) => control.value !== value);
      }
      take(page, sent);
    } else if (mine === running) tell(page.body.innerText.trim() || texts.new.offline, true);
  } catch (error) {
    if (error.name !== 'AbortError') tell(texts.new.offline, true);
  }
  if (mine === running) form.removeAttribute('aria-busy');
}

// Shows what came back. What was changed since it was sent stays: it is sent again.
function take(page, sent) {
  for (const part of document.querySelectorAll('[data-part]')) {
    const fresh = page.getElementById(part.id);
    if (!fresh || fresh.innerHTML === part.innerHTML) continue;
    if (part.id !== 'keys' || names(part) !== names(fresh)) part.replaceChildren(...fresh.childNodes);
  }
  for (const fresh of page.getElementById('job').elements) {
    if (fresh.type === 'radio') {
      form.querySelector(`[name=${fresh.name}][value=${fresh.value}]`).checked = fresh.checked;
      continue;
    }
    const own = fresh.name && fresh.type !== 'file' && fresh.type !== 'submit' && form.elements.namedItem(fresh.name);
    if (!own || own.value === fresh.value || (sent.has(own) && sent.get(own) !== own.value)) continue;
    if (own.options) own.replaceChildren(...(fresh.options.length ? [...fresh.childNodes] : []));
    const at = own.selectionStart;
    own.value = own.options ? (own.querySelector('[selected]')?.value ?? '') : fresh.value;
    if (own === yaml) own.setSelectionRange(at, at);
  }
  for (const control of form.querySelectorAll('[aria-describedby]')) {
    const fault = control.parentNode.closest('.field').querySelector('.bad');
    fault.textContent ? control.setAttribute('aria-invalid', 'true') : control.removeAttribute('aria-invalid');
  }
  for (const bad of form.querySelectorAll('.field .bad:not(:empty)')) bad.closest('details')?.setAttribute('open', '');
  clock();
  number();
}

// The end of the run by the clock of whoever looks, with its day where that is another one.
function clock() {
  for (const time of document.querySelectorAll('.sentence time')) {
    const end = new Date(time.dateTime),
      isToday = end.toDateString() === new Date().toDateString();
    time.textContent = end.toLocaleString([], {
      hour: '2-digit',
      minute: '2-digit',
      ...(isToday ? {} : {weekday: 'short'}),
    });
  }
}

// Line numbers behind the text, with the lines marked that have an error.
function number() {
  const count = yaml.value.split('\n').length;
  if (count !== numbered)
    gutter.replaceChildren(
      ...Array.from({length: count}, (_, line) =>
        Object.assign(document.createElement('span'), {textContent: line + 1}),
      ),
    );
  numbered = count;
  const bad = new Set([...document.querySelectorAll('.errors [data-line]')].map(link => Number(link.dataset.line)));
  [...gutter.children].forEach((span, line) => span.classList.toggle('bad', bad.has(line + 1)));
  gutter.scrollTop = yaml.scrollTop;
}

function goTo(line) {
  yaml.closest('details').open = true;
  const lines = yaml.value.split('\n'),
    begin = lines.slice(0, line - 1).join('\n').length + (line > 1);
  yaml.focus();
  yaml.setSelectionRange(begin, begin + (lines[line - 1] ?? '').length);
  yaml.scrollTop = (line - 4) * parseFloat(getComputedStyle(yaml).lineHeight);
  yaml.scrollLeft = 0;
}

function later(event) {
  unsent = true;
  if (event.target === yaml) number();
  if ('quiet' in event.target.dataset) return;
  clearTimeout(timer);
  running?.abort();
  timer = setTimeout(check, 400);
}
form.addEventListener('input', later);
form.addEventListener('change', event => {
  if (event.target.options) later(event);
}); // not all say 'input' of a list
form.addEventListener('click', event => {
  const link = event.target.closest('[data-line]');
  if (!link) return;
  event.preventDefault();
  goTo(Number(link.dataset.line));
});
form.addEventListener('submit', event => {
  clearTimeout(timer);
  running?.abort();
  form.setAttribute('aria-busy', 'true');
  if (!['check', 'search'].includes(event.submitter?.value)) {
    unsent = false;
    return;
  }
  event.preventDefault();
  check();
});
keys.addEventListener('toggle', () => {
  if (!keys.open || form.elements.all.value) return;
  form.elements.all.value = '1';
  check(unsent || location.search.includes('draft=') ? 'check' : 'look'); // a visit alone makes no draft
});
addEventListener('beforeunload', event => {
  if (unsent) event.preventDefault();
});
yaml.addEventListener('scroll', () => {
  gutter.scrollTop = yaml.scrollTop;
});
yaml.closest('details').addEventListener('toggle', number);
number();
clock();
if ('look' in form.dataset) check('look');
