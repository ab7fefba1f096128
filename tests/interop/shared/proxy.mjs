// A real Nest ClientProxy behind one form of call for every transport.
import { AsyncLocalStorage } from 'node:async_hooks';
import { nestOptions, withMetadata } from './transports.mjs';
import { createTopics } from './kafka.mjs';

export async function openProxy(nest, given) {
  if (given.transport === 'grpc') return openGrpc(nest, given);
  const { transport } = given;
  const { from, mergeMap, Observable } = nest.rxjs;
  const options = await nestOptions(nest, 'client', given);
  const client = nest.microservices.ClientProxyFactory.create(options);
  // The hook knows only the packet; the storage knows which call it belongs to.
  const calling = new AsyncLocalStorage();
  client.setOnDispatchHook?.((packet) => {
    const metadata = calling.getStore();
    if (metadata) packet.metadata = metadata;
  });
  if (transport === 'kafka') {
    const patterns = given.patterns ?? [];
    await createTopics(nest, options.options.client, patterns.flatMap((pattern) => [pattern, `${pattern}.reply`]));
    for (const pattern of patterns) client.subscribeToResponseOf(pattern);
  }
  if (given.connect !== false && (transport === 'kafka' || given.connect)) await client.connect();
  if (transport === 'kafka' && given.connect !== false) await untilAssigned(client, given.patterns ?? []);

  const call = (method) => (pattern, data, metadata, record) => {
    const payload = (metadata && !given.hookOnly) || record ? from(withMetadata[transport](nest, data, metadata ?? {}, record)) : null;
    const dispatch = (value) =>
      new Observable((observer) => calling.run(metadata, () => client[method](pattern, value).subscribe(observer)));
    return payload ? payload.pipe(mergeMap(dispatch)) : dispatch(data);
  };
  return { send: call('send'), emit: call('emit'), connect: () => client.connect(), close: () => client.close() };
}

// A Nest client on Kafka says it is connected before its group has given it partitions to be answered on.
async function untilAssigned(client, patterns) {
  for (let tries = 0; tries < 600; tries += 1) {
    const assigned = client.getConsumerAssignments();
    if (patterns.every((pattern) => assigned[`${pattern}.reply`] !== undefined)) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`no partitions for the replies of ${patterns}`);
}

// Patterns are "Sum" or "Math/Sum"; `record` may hold {requests: [...], interval, deadline}.
async function openGrpc(nest, given) {
  const { concatMap, from, delay, of, throwError } = nest.rxjs;
  const grpc = await nest.load('@grpc/grpc-js');
  const client = nest.microservices.ClientProxyFactory.create(await nestOptions(nest, 'client', given));
  const send = (pattern, data, metadata, { requests, interval = 0, deadline } = {}) => {
    const [method, service = 'Math'] = String(pattern).split('/').reverse();
    const made = new grpc.Metadata();
    for (const [key, value] of Object.entries(metadata ?? {})) {
      for (const item of [value].flat()) made.add(key, key.endsWith('-bin') ? Buffer.from(item, 'base64') : item);
    }
    const stub = client.getService(service);
    if (!stub[method]) return throwError(() => new Error(`no method ${method} in ${service}`));
    const paced = (items) => from(items).pipe(concatMap((item) => (interval ? of(item).pipe(delay(interval)) : of(item))));
    return stub[method](requests ? paced(requests) : data, made, deadline ? { deadline: Date.now() + deadline } : {});
  };
  return { send, connect: async () => {}, close: () => client.close() };
}
