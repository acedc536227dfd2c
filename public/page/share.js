// Links with a prompt and settings; downloads.
import { readSettings } from './settings.js';

export function linkTo(address, prompt, settings) {
  const url = new URL(address);
  url.hash = new URLSearchParams({ prompt, ...settings }).toString();
  return url.href;
}

// The prompt and settings of a link, or undefined if it has no prompt.
export function readLink(address) {
  const fields = Object.fromEntries(new URLSearchParams(new URL(address).hash.slice(1)));
  if (!fields.prompt) return undefined;
  return { prompt: fields.prompt, settings: readSettings(fields) };
}

export function saveAs(name, text) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'text/plain;charset=utf-8' }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
