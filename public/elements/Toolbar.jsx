// Above the text, always in view: the actions.
import { useState, useSyncExternalStore } from 'react';

function Copy({ id, label, done, text }) {
  const [shown, setShown] = useState(label);
  const tell = (copied) => (setShown(copied.endsWith('&shown') ? 'Too long: copied without the other versions' : done), setTimeout(setShown, 3000, label));
  const click = (copied = text()) => navigator.clipboard.writeText(copied).then(() => tell(copied));
  return <button id={id} type="button" aria-live="polite" onClick={() => click()}>{shown}</button>;
}

function Toolbar() {
  const { running, sheet, editing, problem, offline, interrupted, chosen } = useSyncExternalStore(page.subscribe, page.get);
  const shown = page.document();
  if (!shown) return null;
  const busy = running !== null || offline;
  const stops = running !== null || interrupted !== null;
  const write = () => (stops ? page.stop() : editing === null ? page.goOn() : page.rewrite(document.getElementById('edited')));
  // Not `disabled`, which would take the focus away.
  const action = (id, label, title, act, off = busy || editing !== null) =>
    <button id={id} type="button" title={title} aria-disabled={off} className={act === write ? 'primary' : ''} onClick={() => off || act()}>{label}</button>;
  return <div className="toolbar column">
    <h1 className="sr-only">{page.nameOf(shown)}</h1>
    <div role="group" aria-label="Actions" className="chips">
      {stops ? action('stop', 'Stop', 'Stop writing', write, false) : action('continue', editing === null ? 'Continue' : 'Continue from here', 'Continue from the end of the text, or from the cursor', write, busy)}
      {action('again', 'Try again', 'Write the last part again, with another seed', page.again)}
      {action('edit', editing === null ? 'Edit' : 'Cancel', 'Edit the text yourself, or cancel your edit', () => (editing === null ? page.edit(chosen) : page.close()), busy && editing === null)}
      {action('undo', 'Undo', 'Undo the last change (Ctrl+Z)', page.undo, busy || editing !== null || page.undoable() < 0)}
      {action('new', 'New text', 'Begin another text; this one stays in the list', page.begin, running !== null || editing !== null)}
      <button id="share" type="button" popovertarget="sharing" title="Copy, download or link to this text">Share <span aria-hidden="true">▾</span></button>
      <div id="sharing" popover="auto">
        {navigator.clipboard ? <>
          <Copy id="copy" label="Copy" done="Copied" text={page.text} />
          <Copy id="link" label="Copy link" done="Link copied" text={page.link} />
        </> : <span className="legend">Copying needs HTTPS.</span>}
        <a id="save" download="text.txt" href={`data:text/plain;charset=utf-8,${encodeURIComponent(page.text().toWellFormed())}`}>Download</a>
      </div>
      <button id="look-inside" type="button" title="Show the panel" aria-pressed={sheet} onClick={() => page.set({ sheet: !sheet })}>Look inside</button>
    </div>
    {problem && <p role="alert" className="problem">{problem}</p>}
  </div>;
}

export default page.component('Toolbar', Toolbar);
