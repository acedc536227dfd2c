// Loaded before Chainlit shows anything: code that the elements share, and what Chainlit's own parts lack.
import './page/storage.js'; // first
import * as classroom from './page/classroom.js';
import * as documents from './page/document.js';
import * as sampling from './page/sampling.js';
import * as settings from './page/settings.js';
import { page } from './page/store.js';

// The elements in public/elements cannot import from here.
Object.assign(window, { page: Object.assign(page, classroom, documents, sampling, settings) });

// Follow the system's theme; Chainlit's default is dark.
if (!localStorage.getItem('vite-ui-theme')) localStorage.setItem('vite-ui-theme', 'system');

// This page's words, names for buttons that have none, and landmarks.
const NAMES = { 'chat-input': 'Prompt', 'chat-submit': 'Generate', 'stop-button': 'Stop', 'theme-toggle': 'Theme' };
function label() {
  for (const [id, name] of Object.entries(NAMES)) document.getElementById(id)?.setAttribute('aria-label', name);
  document.getElementById('chat-input')?.setAttribute('placeholder', 'Type the beginning of a text…');
  for (const element of document.querySelectorAll('#readme-button, #readme-button *, [role=dialog] h2, [role=dialog] h2 *'))
    if (element.textContent === 'Readme' && !element.firstElementChild) element.textContent = 'Help';
  document.getElementById('header')?.setAttribute('role', 'banner');
  document.getElementById('header')?.nextElementSibling?.setAttribute('role', 'main');
}

// Chainlit mounts the input again while the page loads: keep what has been typed, and the focus.
let box, focused, home;
addEventListener('focusin', ({ target }) => ([focused, home] = [target, target.closest('#tab-panel, #earlier')]));
function keepTyped() {
  const now = document.getElementById('chat-input');
  if (!now || now === box) return;
  if (box?.value && !now.value) {
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(now, box.value);
    now.dispatchEvent(new Event('input', { bubbles: true }));
  }
  if (box && focused === box) now.focus();
  box = now;
}
// What is gone passes the focus on to its tab or list, or else to the toolbar or the start. Menus do that themselves.
function keepFocus() {
  if (document.activeElement === document.body && focused && !focused.checkVisibility() && !focused.closest('[popover]'))
    (home?.checkVisibility() ? home : document.querySelector('#stop, #continue, .start'))?.focus({ preventScroll: true });
}
// The second click of a double click, or Enter held down, may hit a button that the first has put there. It is ignored, except on buttons that people click fast.
for (const type of ['click', 'keydown'])
  addEventListener(type, (event) => (event.detail > 1 || (event.repeat && event.key === 'Enter')) && event.target.closest('button:not(#undo, .versions button)') && (event.stopPropagation(), event.preventDefault()), true);
new MutationObserver(() => (label(), keepTyped(), keepFocus())).observe(document, { childList: true, subtree: true });
