// The handlers: one of every shape that NestJS answers with.
import { decorate } from './decorate.mjs';
import { openProxy } from './proxy.mjs';
import { receivedMetadata } from './transports.mjs';

const TRACE = ['traceparent', 'tracestate', 'baggage', 'x-correlation-id'];
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// name -> handler(data, context); answered both as "name" and as {cmd: "name"}.
function messages(nest, given, state) {
  const { RpcException } = nest.microservices;
  const { BadRequestException } = nest.common;
  const { concat, EMPTY, finalize, ignoreElements, interval, map, of, take, throwError, timer } = nest.rxjs;
  const boom = () => throwError(() => new RpcException({ code: 'E42', message: 'boom', status: 422 }));
  const throws = (make) => () => {
    throw make();
  };
  const metadata = (context) => receivedMetadata[given.transport](context);

  return {
    sum: (data) => data.reduce((total, number) => total + number, 0),
    echo: (data) => data,
    null_value: () => null,
    no_value: () => undefined,
    array: () => [1, 2, 3],
    unicode: () => 'grüße 😀 \u2028 日本',
    big: (data) => 'x'.repeat(data.size ?? data),
    size: (data) => JSON.stringify(data).length,
    whoami: () => ({ pid: process.pid, nest: nest.version, name: given.name ?? null }),

    observable_last: () => of(1, 2, 3), // the end shares the last value's packet
    observable_late: () => concat(of(1, 2), timer(20).pipe(map(() => 3)), timer(20).pipe(ignoreElements())),
    observable_empty: () => EMPTY,
    observable_error: () => concat(of(1, 2), boom()),
    observable_promise: async () => of(1, 2, 3),
    count: (data) => {
      state.streams.started += 1;
      const { n, ms = 0 } = typeof data === 'object' ? data : { n: Number(data) };
      if (n === 0) return EMPTY;
      if (!ms) return of(...Array(n).keys());
      return interval(ms).pipe(take(n), finalize(() => (state.streams.ended += 1)));
    },

    rpc_string: throws(() => new RpcException('boom')),
    rpc_object: throws(() => new RpcException({ code: 'E42', message: 'boom', status: 422 })),
    rpc_number: throws(() => new RpcException(42)),
    rpc_array: throws(() => new RpcException(['a', 'b'])),
    rpc_error: throws(() => new RpcException(new Error('inner'))),
    fail: (data) => throwError(() => new RpcException(data)), // whatever the caller wants
    plain_error: throws(() => new Error('a secret of the service')),
    http_exception: throws(() => new BadRequestException(['name must be a string'])),
    throw_string: throws(() => 'a string'),
    bigint: () => 10n, // cannot be written: nothing is answered

    metadata: (data, context) => metadata(context),
    delay: async (data) => {
      await sleep(data.ms);
      return data.value;
    },
    // How often the key was called; fails for the first `failures` calls.
    flaky: async (data) => {
      const calls = (state.calls.get(data.key) ?? 0) + 1;
      state.calls.set(data.key, calls);
      if (data.ms) await sleep(data.ms);
      if (calls <= (data.failures ?? 0)) throw new RpcException({ status: 503, message: 'not yet', calls });
      return { calls };
    },
    calls: (data) => state.calls.get(data.key ?? data) ?? 0,
    events: (data) => state.events.filter(({ run }) => run === (data.run ?? data)),
    streams: () => state.streams,
    forward: async (data, context) => {
      const carried = Object.entries(metadata(context)).filter(([key]) => TRACE.includes(key));
      const proxy = await state.proxy(data.to);
      const method = data.mode ?? 'send';
      return proxy[method](data.pattern, data.data, Object.fromEntries(carried));
    },
  };
}

export function makeState(nest) {
  const proxies = new Map();
  return {
    events: [],
    calls: new Map(),
    streams: { started: 0, ended: 0 },
    proxy(to) {
      const key = JSON.stringify(to);
      if (!proxies.has(key)) proxies.set(key, openProxy(nest, to));
      return proxies.get(key);
    },
    async close() {
      for (const proxy of proxies.values()) await (await proxy).close();
    },
  };
}

// With noAck: false Nest leaves the acknowledgement to the handler.
function acknowledging(nest, handler) {
  const { finalize, isObservable } = nest.rxjs;
  return async (data, context) => {
    const ack = () => context.getChannelRef().ack(context.getMessage());
    try {
      const result = await handler(data, context);
      if (isObservable(result)) return result.pipe(finalize(ack));
      ack();
      return result;
    } catch (error) {
      ack();
      throw error;
    }
  };
}

// Returns the controller's class and the patterns that are names of Kafka topics.
export function makeController(nest, given, state) {
  const { Ctx, EventPattern, MessagePattern, Payload, RpcException } = nest.microservices;
  const prefix = given.prefix ?? '';
  const kafka = given.transport === 'kafka';
  const metadata = (context) => receivedMetadata[given.transport](context);
  const wanted = (name) => !given.handlers || given.handlers.includes(name);
  const topics = [];

  class Interop {}
  nest.common.Controller()(Interop);
  const define = (decorator, name, patterns, handler) => {
    const decorated = given.options?.noAck === false ? acknowledging(nest, handler) : handler;
    Interop.prototype[name] = (data, context) => decorated(data, context);
    Payload()(Interop.prototype, name, 0);
    Ctx()(Interop.prototype, name, 1);
    const used = kafka ? patterns.filter((pattern) => typeof pattern === 'string') : patterns;
    topics.push(...(kafka ? used : []));
    decorate(Interop.prototype, name, decorator(used));
  };

  for (const [name, handler] of Object.entries(messages(nest, given, state))) {
    if (wanted(name)) define(MessagePattern, name, [prefix + name, { cmd: prefix + name }], handler);
  }
  if (!kafka) {
    define(MessagePattern, 'number', [42], () => 'forty-two');
    define(MessagePattern, 'nested', [{ svc: `${prefix}n`, b: 2, a: { d: 'x', c: 1 } }], () => 'nested');
    define(MessagePattern, 'unicode_pattern', [`${prefix}grüße`], () => 'grüße');
  }
  const record = (pattern) => (data, context) => {
    const run = data?.run ?? data?.runId ?? null;
    state.events.push({ run, pattern, data, metadata: metadata(context), at: Date.now() });
    if (state.events.length > 10_000) state.events.shift();
  };
  const events = {
    user_created: record('user_created'),
    slow_event: async (data, context) => {
      await sleep(data.ms);
      record('slow_event')(data, context);
    },
    failing_event: (data, context) => {
      record('failing_event')(data, context);
      if (!kafka) throw new RpcException('an event that fails'); // Kafka would deliver it again
    },
    twice: record('twice'),
  };
  for (const [name, handler] of Object.entries(events)) {
    if (wanted(name)) define(EventPattern, `on_${name}`, [prefix + name, { event: prefix + name }], handler);
  }
  if (wanted('twice')) define(EventPattern, 'on_twice_again', [prefix + 'twice', { event: prefix + 'twice' }], record('twice again'));
  return { Interop, topics: [...new Set(topics)] };
}
