// What every page does: forms that ask before something is lost, and lists that stay current.
import {all, one, shown} from '/static/pages/viewer.js';
export {all, around, one, shown, viewer} from '/static/pages/viewer.js';

/** @type {Texts} */
export const texts = JSON.parse(one('#texts').textContent);

/** @param {string} text */
export function tell(text, isBad = false) {
  const told = one('#told');
  told.textContent = shown(text);
  told.className = isBad ? 'bad' : '';
}

// How old the page is: bars are grey as soon as nothing is heard for ten seconds, and it says since when, or that somebody
// has to log in again, in another tab so that what is typed here stays.
const OLD_MS = 10000;
const lost = one('#lost');
let heard = Date.now();
/** @type {'' | 'login' | 'silent'} */
let fault = '';

/**
 * @param {string} address
 * @param {RequestInit} options
 */
export async function look(address, options = {}) {
  try {
    const answer = await fetch(address, {signal: AbortSignal.timeout(OLD_MS), ...options});
    fault = answer.status === 401 ? 'login' : answer.status > 500 ? 'silent' : ''; // a proxy answers for a dead server
    if (!fault) heard = Date.now();
    return answer;
  } catch (error) {
    fault ||= 'silent';
    throw error;
  } finally {
    showAge();
  }
}

function showAge() {
  const isOld = fault === 'login' || Date.now() - heard > OLD_MS;
  const says = isOld && !document.hidden ? fault : '';
  document.body.classList.toggle('old', isOld);
  if (lost.dataset.says === says) return;
  lost.dataset.says = says;
  lost.textContent =
    says &&
    texts.lost[says].replace('{time}', new Date(heard).toLocaleTimeString([], {hour: '2-digit', minute: '2-digit'}));
  if (says === 'login')
    lost.append(
      ' ',
      Object.assign(document.createElement('a'), {href: '/login', target: '_blank', textContent: texts.lost.again}),
    );
}
setInterval(showAge, 1000);

/**
 * Puts parts of this page in as the server has them by now.
 * @param {string[]} places
 */
export async function renew(...places) {
  const page = new DOMParser().parseFromString(await (await look(location.href)).text(), 'text/html');
  for (const place of places) document.querySelector(place)?.replaceWith(page.querySelector(place) ?? '');
}

document.addEventListener('submit', event => {
  const form = /** @type {HTMLFormElement} */ (event.target);
  const question = event.submitter?.dataset.ask ?? form.dataset.ask;
  if (question && !confirm(question)) event.preventDefault();
});

/**
 * Replaces the children that differ of an element with data-live by those of its page, so that a choice in it stays.
 * @param {HTMLElement} list
 */
async function refresh(list) {
  if (document.hidden || list.contains(document.activeElement)) return;
  const answer = await look(list.dataset.live + location.search, {headers: {accept: 'text/html'}});
  if (!answer.ok) return;
  if (answer.redirected) return location.replace(answer.url); // what was waited for is there
  const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
  const fresh = page.querySelector(`[data-live="${list.dataset.live}"]`);
  if (!fresh && list.dataset.live === location.pathname) return location.reload(); // nothing changes any more
  if (!fresh) return;
  /** @type {HTMLInputElement[]} */
  const boxes = all('[type=checkbox]', fresh);
  const chosen = all(':checked', list).map(box => box.getAttribute('value'));
  for (const box of boxes) box.checked = chosen.includes(box.value);
  if (fresh.innerHTML !== list.innerHTML) list.replaceChildren(...fresh.children);
}

for (const list of all('[data-live]')) {
  const again = () => refresh(list).catch(() => {});
  setInterval(again, Number(list.dataset.every ?? 5000));
  document.addEventListener('visibilitychange', again);
}
