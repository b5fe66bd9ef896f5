// A relay in the manner of the original: an HTTP server and a TCP server, joined by Redis through a small
// proxy object. node node_relay.js REDIS_PORT; it prints the ports of its two servers.
const http = require('http');
const net = require('net');
const redis = require('redis');

const CHANNEL = 'pay_mq_channel';

function createProxy(port) {
  const pub = redis.createClient(port, '127.0.0.1');
  const sub = redis.createClient(port, '127.0.0.1');
  const listeners = {};
  const errors = [];
  const fail = (err) => errors.forEach((callback) => callback(err));
  pub.on('error', fail);
  sub.on('error', fail);
  sub.on('message', (channel, text) => {
    let message = text;
    try { message = JSON.parse(text); } catch (e) { /* not JSON: as it is */ }
    (listeners[channel] || []).slice().forEach((callback) => callback(message));
  });
  const proxy = {
    on(channel, callback, onError) {
      if (!listeners[channel]) {
        listeners[channel] = [];
        sub.subscribe(channel);
      }
      listeners[channel].push(callback);
      if (onError) errors.push(onError);
    },
    once(channel, callback, onError) {
      const first = (message) => { proxy.removeListener(channel, first); callback(message); };
      proxy.on(channel, first, onError);
    },
    removeListener(channel, callback) {
      listeners[channel] = (listeners[channel] || []).filter((other) => other !== callback);
    },
    emit(channel, message, callback) {
      pub.publish(channel, typeof message === 'string' ? message : JSON.stringify(message), callback);
    },
    ready(callback) { sub.on('subscribe', callback); },
  };
  return proxy;
}

const proxy = createProxy(process.argv[2]);
const sockets = {};

proxy.ready(() => {
  const web = http.createServer((req, res) => {
    let body = '';
    req.on('data', (chunk) => { body += chunk; });
    req.on('end', () => {
      let msg = body;
      try { msg = JSON.parse(body); } catch (e) { /* a plain string */ }
      proxy.emit(CHANNEL, { id: req.url.split('/').pop(), msg }, (err) => {
        res.statusCode = err ? 502 : 200;
        res.end('success');
      });
    });
  });
  const tcp = net.createServer((sock) => {
    let id = null;
    sock.on('error', () => {});
    sock.once('data', (data) => {
      id = data.toString().trim();
      (sockets[id] = sockets[id] || []).push(sock);
      console.log(`registered ${id}`);
    });
    sock.on('close', () => { if (sockets[id]) sockets[id] = sockets[id].filter((other) => other !== sock); });
  });
  web.listen(0, '127.0.0.1', () => tcp.listen(0, '127.0.0.1', () => {
    console.log(`ports ${web.address().port} ${tcp.address().port}`);
  }));
});
proxy.on(CHANNEL, (data) => {
  (sockets[data.id] || []).forEach((sock) => {
    sock.write((typeof data.msg === 'string' ? data.msg : JSON.stringify(data.msg)) + '\n');
  });
}, (err) => console.error(err));
