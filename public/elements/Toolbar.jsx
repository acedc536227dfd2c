// Above the text, always in view: the actions.
import { useEffect, useRef, useState, useSyncExternalStore } from 'react';

// A button that opens a list of actions. An action may return the label to show for a moment.
function Menu({ id, label, children }) {
  const [open, setOpen] = useState(false);
  const box = useRef(null);
  useEffect(() => {
    const onPointer = (event) => box.current?.contains(event.target) || setOpen(false);
    addEventListener('pointerdown', onPointer);
    return () => removeEventListener('pointerdown', onPointer);
  }, []);
  const onKeyDown = (event) => {
    if (event.key !== 'Escape' || !open) return;
    event.preventDefault();
    setOpen(false);
    box.current.firstChild.focus();
  };
  return (
    <div className="menu" ref={box} onKeyDown={onKeyDown}>
      <button type="button" id={id} aria-expanded={open} onClick={() => setOpen(!open)}>{label} <span aria-hidden="true">▾</span></button>
      {open && <div className="items">{children}</div>}
    </div>
  );
}

function Done({ id, label, done, act }) {
  const [shown, setShown] = useState(label);
  const click = () => Promise.resolve(act()).then(() => (setShown(done), setTimeout(() => setShown(label), 2000)));
  return <button id={id} type="button" aria-live="polite" onClick={click}>{shown}</button>;
}

function Toolbar() {
  const { running, sheet, editing, problem } = useSyncExternalStore(page.subscribe, page.get);
  useEffect(() => {
    const onKey = (event) => {
      const undo = (event.ctrlKey || event.metaKey) && event.key === 'z' && !event.target.closest('input, textarea');
      if (undo && page.document()) (event.preventDefault(), page.undo());
    };
    addEventListener('keydown', onKey);
    return () => removeEventListener('keydown', onKey);
  }, []);
  const shown = page.document();
  if (!shown) return null;
  const busy = running !== null;
  // Not `disabled`, which would take the focus away.
  const action = (id, label, title, act, off = busy) => (
    <button id={id} type="button" title={title} aria-disabled={off} onClick={() => off || act()}>{label}</button>
  );
  const onClick = (event) => (busy ? event.detail < 2 && page.stop() : page.goOn()); // a double click does not stop
  return (
    <div className="toolbar">
      <h1 className="sr-only">{page.nameOf(shown)}</h1>
      <div role="group" aria-label="Actions" className="actions">
        <button id={busy ? 'stop' : 'continue'} type="button" className="primary" title={busy ? 'Stop writing' : 'Write on from the end of the text'} onClick={onClick}>
          {busy ? 'Stop' : 'Continue'}
        </button>
        {action('again', 'Try again', 'Write the last part again, with another seed', page.again)}
        {action('edit', 'Edit', 'Change the text yourself', () => page.set({ editing: page.text().length }), busy || editing !== null)}
        {action('undo', 'Undo', 'Take back the last change (Ctrl+Z)', page.undo, busy || page.undoable() < 0)}
        {action('new', 'New text', 'Begin another text; this one stays in the list', page.begin)}
        <Menu id="share" label="Share">
          {navigator.clipboard && ( // not available over plain HTTP from another machine
            <>
              <Done id="copy" label="Copy" done="Copied" act={() => navigator.clipboard.writeText(page.text())} />
              <Done id="link" label="Copy link" done="Link copied" act={() => navigator.clipboard.writeText(page.link())} />
            </>
          )}
          <button id="save" type="button" onClick={page.save}>Download</button>
        </Menu>
        <button id="look-inside" type="button" title="Show the panel" aria-pressed={sheet} onClick={() => page.set({ sheet: !sheet })}>Look inside</button>
      </div>
      {problem && <p role="alert" className="problem">{problem.text}</p>}
    </div>
  );
}

export default page.component('Toolbar', Toolbar);
