// Shows nothing. It gives the page's store (public/page/store.js) app.py's configuration and Chainlit's socket.
import { useEffect } from 'react';
import { useRecoilValue } from 'recoil';
import { sessionState } from '@chainlit/react-client';

Object.assign(page.config, props);
Object.assign(page, { call: callAction, send: sendUserMessage });

function Connection() {
  const socket = useRecoilValue(sessionState)?.socket;
  useEffect(() => socket && page.connect(socket), [socket]);
  return null;
}

export default page.component('Connection', Connection);
