// One dataset: captions saved in place, keys between images. Files: upload.js.
import {renew, tell, texts, viewer} from '/static/page.js';
import {ask, say} from '/static/upload.js';

const words = texts.datasets;
const main = document.getElementById('main');

// ---- captions

const NEXT = ['.counts', '#path', '.nexts']; // what a first or a last caption changes

const undoForm = document.querySelector('.undoing');
function undoes(step) {
  // the change that Undo takes back; empty: there is none
  undoForm.hidden = !step;
  undoForm.elements.step.value = step;
}

function mark(form) {
  const area = form.elements.caption,
    isDirty = area.value !== area.defaultValue;
  form.classList.toggle('clean', !isDirty);
  const short = form.querySelector('.short'),
    text = area.value.trim();
  short.textContent = text || short.dataset.none;
  if (text) short.className = 'short';
  else if (short.className === 'short') short.className = 'short warn';
  if (isDirty) form.querySelector('[role=status]').textContent = words.unsaved;
  return isDirty;
}

async function save(form) {
  const {caption, name, version} = form.elements,
    note = form.querySelector('[role=status]');
  const before = caption.defaultValue,
    sent = caption.value;
  if (before === sent || form.classList.contains('busy')) return;
  form.classList.add('busy');
  try {
    const answer = await ask(form.action, {method: 'POST', body: new URLSearchParams(new FormData(form))});
    if (answer.ok) {
      version.value = answer.version;
      caption.defaultValue = sent;
      delete form.dataset.conflict;
      note.textContent = words.saved;
      note.className = 'good';
      setTimeout(() => {
        if (note.className === 'good') note.textContent = '';
      }, 2500);
      undoes(answer.step);
      if (!before.trim() !== !sent.trim()) renew(...NEXT);
    } else if (answer.status === 409 && 'theirs' in answer) {
      version.value = answer.version;
      caption.defaultValue = answer.theirs;
      form.dataset.conflict = ''; // only who asks for it replaces what somebody else wrote
      note.textContent = say(words.conflict, answer);
      note.className = 'bad';
    } else {
      note.textContent = say(words.failed, {reason: answer.detail});
      note.className = 'bad';
    }
  } catch {
    note.textContent = words.offline;
    note.className = 'bad';
  }
  form.classList.remove('busy');
  const isClean = caption.value === caption.defaultValue;
  form.classList.toggle('clean', isClean);
  if (!isClean && note.className === 'good' && document.activeElement !== caption) save(form); // typed meanwhile
}

for (const form of document.querySelectorAll('form.caption')) {
  mark(form);
  form.addEventListener('input', () => {
    form.querySelector('[role=status]').className = 'faint';
    mark(form);
  });
  form.addEventListener('submit', event => {
    event.preventDefault();
    save(form);
  });
  form.elements.caption.addEventListener('blur', () => {
    if (!('conflict' in form.dataset)) save(form);
  });
}
addEventListener('beforeunload', event => {
  if ([...document.querySelectorAll('form.caption')].some(mark)) event.preventDefault();
});

undoForm?.addEventListener('submit', async event => {
  event.preventDefault();
  const sent = {method: 'POST', keepalive: true, body: new URLSearchParams({step: undoForm.elements.step.value})};
  const answer = await ask(undoForm.action, sent).catch(() => ({detail: words.offline}));
  if (!answer.ok) return tell(say(words.failed, {reason: answer.detail}), true);
  for (const form of document.querySelectorAll('form.caption')) {
    const {caption, name, version} = form.elements,
      now = answer.now[name.value];
    if (!now || caption.value !== caption.defaultValue) continue; // what is being typed stays
    [version.value, caption.value] = now;
    caption.defaultValue = caption.value;
    form.querySelector('[role=status]').textContent = words.undone;
    mark(form);
  }
  undoes(answer.step);
  renew(...NEXT);
  tell(answer.failed ? say(words.not_undone, {count: answer.failed}) : words.undone, answer.failed > 0);
});

// ---- images

main.addEventListener(
  'error',
  async event => {
    // an image that cannot be decoded: the answer says why
    const view = event.target.closest?.('.view');
    if (!view) return;
    const answer = await ask(event.target.src).catch(() => ({detail: ''}));
    const why = Object.assign(document.createElement('span'), {className: 'bad why', textContent: answer.detail});
    view.replaceChildren(why);
  },
  true,
);

const all = document.querySelector('.all'); // where there are images
if (all) {
  const captioned = link => {
    const card = link.closest('.image, .orphan');
    return `${card.dataset.name} · ${card.querySelector('textarea')?.value ?? ''}`;
  };
  const enlarge = viewer(captioned, (link, by) => {
    const links = [...document.querySelectorAll('.view:has(img)')];
    return links[links.indexOf(link) + by];
  });
  main.addEventListener('click', event => {
    const area = event.target.closest('.image:not(.open)')?.querySelector('textarea');
    const isMeant = event.target.closest('.sheet') || (rows.matches('.desk') && event.target.closest('.view'));
    if (!area || !isMeant) return enlarge(event, event.target.closest('.view:has(img)'));
    event.preventDefault();
    write(area);
  });

  all.hidden = false;
  all.querySelector('input').addEventListener('change', event => {
    for (const box of document.querySelectorAll('[name=chosen]')) box.checked = event.target.checked;
  });
}

// ---- the desk: one image large, its caption below it, the others beside it

const rows = document.querySelector('.rows'),
  desk = document.getElementById('desk');
rows?.classList.add('live');
const areas = () => [...rows.querySelectorAll('textarea')];

function write(area) {
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

function wordOf(texts) {
  // for the subject: what a model was told, or what all captions begin with
  const firsts = texts.map(text => /^[^\s,.:]+/.exec(text.trim())?.[0]).filter(Boolean);
  return rows.dataset.trigger || (firsts.length > 2 && firsts.every(first => first === firsts[0]) ? firsts[0] : '');
}

function openDesk(card) {
  rows.querySelector('.open')?.classList.remove('open');
  rows.classList.add('desk');
  card.classList.add('open');
  const all = areas(),
    word = wordOf(all.map(area => area.value)),
    button = desk.querySelector('.word');
  desk.querySelector('.num').textContent = `${all.indexOf(card.querySelector('textarea')) + 1} / ${all.length}`;
  button.textContent = word;
  button.hidden = !word;
  card.querySelector('.sheet').append(desk);
  desk.hidden = false;
  card.scrollIntoView({block: 'nearest'});
}

function closeDesk() {
  rows.querySelector('.open')?.classList.remove('open');
  rows.classList.remove('desk');
  desk.hidden = true;
}

rows?.addEventListener('focusin', event => {
  if (event.target.name === 'caption') openDesk(event.target.closest('.image'));
});
desk?.querySelector('.word').addEventListener('click', ({target}) => {
  const area = target.closest('.image').querySelector('textarea');
  if (!area.value.includes(target.textContent)) area.value = `${target.textContent}, ${area.value}`;
  area.dispatchEvent(new Event('input', {bubbles: true}));
  write(area);
});

document.addEventListener('keydown', event => {
  const card = document.activeElement.closest?.('.image'),
    area = card?.querySelector('textarea');
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 's' && card) {
    event.preventDefault();
    save(card.querySelector('form.caption'));
  } else if (event.key === 'Escape' && area && card.matches('.open')) {
    closeDesk();
    card.focus();
  } else if (
    document.activeElement === area &&
    area &&
    (event.key === 'Tab' || (event.key === 'Enter' && (event.ctrlKey || event.metaKey)))
  ) {
    const all = areas(),
      next = all[all.indexOf(area) + (event.shiftKey ? -1 : 1)];
    if (next || event.key === 'Enter') event.preventDefault();
    if (next)
      write(next); // leaving a caption saves it
    else save(area.form);
  } else if (document.activeElement === card && card) {
    const cards = [...document.querySelectorAll('.image')],
      at = cards.indexOf(card);
    const by = {ArrowRight: 1, ArrowLeft: -1}[event.key],
      way = {ArrowDown: 1, ArrowUp: -1}[event.key];
    const off = other => way * (other.offsetTop - card.offsetTop),
      aside = other => Math.abs(other.offsetLeft - card.offsetLeft);
    const next = by
      ? cards[at + by]
      : way &&
        cards
          .filter(other => off(other) > 0)
          .sort((one, other) => off(one) - off(other) || aside(one) - aside(other))[0];
    if (event.key === 'Enter' && area) {
      event.preventDefault();
      write(area);
    }
    if (event.key === ' ') {
      event.preventDefault();
      card.querySelector('[name=chosen]')?.click();
    }
    if (next) {
      event.preventDefault();
      next.focus();
    }
  }
});

if (location.hash === '#lint') document.querySelector('#lint')?.closest('details').setAttribute('open', '');
const lint = document.querySelector('[data-status=running]');
if (lint) {
  const look = setInterval(async () => {
    const answer = await ask(lint.dataset.lint).catch(() => ({status: 'running'}));
    if (answer.status === 'running' || [...document.querySelectorAll('form.caption')].some(mark)) return;
    clearInterval(look);
    location.hash = 'lint'; // opens the panel, see above
    location.reload();
  }, 1000);
}
