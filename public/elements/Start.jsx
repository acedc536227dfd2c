// The page before the first prompt: an introduction, ways to begin, and earlier texts.
import { useSyncExternalStore } from 'react';

const CARDS = {
  write: ['Watch it write', 'The model continues a sentence, word by word.'],
  guess: ['Guess the next word', 'It stops before a word. Can you guess as well as the model?'],
  change: ['Change one word and see', 'Choose another word in its text, and it continues from there.']
};

const rename = (document, name = prompt('A name for this text', page.nameOf(document))?.trim()) => name && page.rename(document, name);
const remove = (id, what) => confirm(`Delete ${what}?`) && page.remove(id);

const Earlier = ({ document, name = page.nameOf(document) }) => <li className="row">
  <button type="button" className="starter" onClick={() => page.open(document.id)}><bdi>{name}</bdi></button>
  <span className="chips">
    <button type="button" aria-label={`Rename “${name}”`} onClick={() => rename(document)}>Rename</button>
    <button type="button" aria-label={`Delete “${name}”`} onClick={() => remove(document.id, 'this text')}>Delete</button>
  </span>
</li>;

function Start() {
  const { settings, problem, documents, offline } = useSyncExternalStore(page.subscribe, page.get);
  if (!settings || page.document() || page.isLearner()) return null;
  const blocked = page.config.problem !== null || offline; // there is no model, or no connection
  return <section className="start column" aria-label="Start" tabIndex={-1}>
    <h1>A small GPT</h1>
    {problem && <p role="alert" className="problem">{problem}</p>}
    <p>This small model was trained on one short story and nothing else. It cannot answer questions. Write a beginning, and it continues in the story’s style.</p>
    <div id="cards">
      {Object.entries(CARDS).map(([name, [title, text]]) => <button key={name} id={`card-${name}`} type="button" className="card column" disabled={blocked} onClick={() => page.startWith(name)}><b>{title}</b><span>{text}</span></button>)}
    </div>
    <h2>Type your own beginning below, or use one of these</h2>
    <div id="starters" className="chips">
      {page.config.starters.map((prompt) => <button key={prompt} type="button" className="starter" disabled={blocked} onClick={() => page.send(prompt)}>{prompt}</button>)}
    </div>
    <form id="join-class" className="chips" onSubmit={(event) => (event.preventDefault(), page.joinClass(event.target.elements.code.value.trim()))}>
      <input name="code" aria-label="Class code" placeholder="Class code" inputMode="numeric" autoComplete="off" maxLength={9} required />
      <button type="submit">Join</button>
    </form>
    {documents.length > 0 && <>
      <h2>Earlier texts{page.stores && ', stored in this browser'}</h2>
      <ul id="earlier" className="column" tabIndex={-1}>{documents.map((document) => <Earlier key={document.id} document={document} />)}</ul>
      <button type="button" id="clear" onClick={() => remove('all', 'all texts in this browser')}>Delete all texts</button>
    </>}
    {!page.stores && <p id="not-stored">This browser does not store your texts. Copy or download what you want to keep.</p>}
  </section>;
}

export default page.component('Start', Start);
