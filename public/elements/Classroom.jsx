// A learner's page in a class, and what Guess shows of it to the teacher.
import { useState, useSyncExternalStore } from 'react';

// Words to pick from, and a field for another one.
function WordForm({ options, button, send, given }) {
  const [word, setWord] = useState(given ?? '');
  const off = !word.trim() || page.state.offline;
  const submit = (event) => (event.preventDefault(), off || send(word.trim()));
  return <form onSubmit={submit} className="column">
    <div className="options chips">
      {options?.map((text) => <button key={text} type="button" aria-pressed={word === text} onClick={() => setWord(text)}>{text}</button>)}
    </div>
    <input id="guess" aria-label="Your guess" placeholder="Your own word" autoComplete="off" maxLength={40} value={word} onChange={(event) => setWord(event.target.value)} />
    <button type="submit" id="reveal" className="primary" aria-disabled={off}>{button}</button>
  </form>;
}

const count = (guesses) => (guesses === 1 ? '1 guess' : `${guesses} guesses`);

// How many guessed each word, beside the model's probability of it.
function Revealed({ bars, guesses, wrote, mine }) {
  const { Bars } = page.components;
  const rows = bars.map(({ word, count, prob }) => ({
    key: word, own: word === wrote, bar: count / (guesses || 1), outline: prob, cells: [count, page.percent(prob)],
    label: <bdi className="label">{word}</bdi>
  }));
  return <div className="column" id="revealed">
    <p>The model wrote <b className="label"><bdi>{wrote}</bdi></b>.{mine && <> You guessed <b className="label"><bdi>{mine}</bdi></b>.</>}</p>
    <Bars heads={['Word', 'class', 'model']} rows={rows} />
    <p className="legend">Blue: the class. Outline: the model’s probability of a word that begins so.</p>
  </div>;
}

function Asked() {
  const { classroom, offline } = page.state;
  return <div className="column" id="asked">
    <p>Others open <b className="address">{page.classAddress()}</b> or join with the code <b>{classroom.code}</b> on the start page.{/^(localhost|127\.)/.test(location.hostname) && <> Only this computer can open that address: <code>support/README.md</code> says how to let others in.</>}</p>
    {!page.isAsked(page.pause()) && <p>Your class {classroom.bars ? 'guessed' : 'is still guessing'} the word after: <bdi>{classroom.text.slice(-70)}</bdi></p>}
    <p aria-live="polite"><b>{count(classroom.guesses)}</b></p>
    {classroom.bars ? <Revealed {...classroom} /> : <button type="button" id="reveal-class" className="primary" aria-disabled={offline} onClick={() => offline || page.takePart({ reveal: true })}>Reveal</button>}
  </div>;
}

function Classroom() {
  const { classroom } = useSyncExternalStore(page.subscribe, page.get);
  if (!page.isLearner() || page.document()) return null;
  const leave = <button type="button" id="leave-class" onClick={() => page.joinClass('')}>{classroom ? 'Leave the class' : 'Enter another code'}</button>;
  if (!classroom) return <section className="start column" aria-label="Class" tabIndex={-1}><h1>No such class</h1><p>It has ended, or the code is wrong.</p><div>{leave}</div></section>;
  const { number, text, options, mine, guesses, bars, wrote, full } = classroom;
  return <section className="start column" id="class" aria-label="Class" tabIndex={-1}>
    <h1>Which word comes next?</h1>
    <div className="prose" id="class-text"><bdi>{text}</bdi><span className="gap"> {bars ? wrote : '?'} </span></div>
    {bars ? <Revealed {...classroom} /> : <WordForm key={number} options={options} given={mine} button={mine ? 'Change my guess' : 'Send my guess'} send={(guess) => page.takePart({ guess, number })} />}
    <p className="legend" role="status">{!bars && mine && 'Sent. You can change it until the teacher reveals the guesses. '}{count(guesses)} so far.{full && ' The class is full: a new guess may not be stored.'}</p>
    <div>{leave}</div>
  </section>;
}

page.component('WordForm', WordForm); // also of Guess
page.component('Asked', Asked);
export default page.component('Classroom', Classroom);
