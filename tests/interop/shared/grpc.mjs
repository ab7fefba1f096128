// The gRPC service `interop.Math`, with every kind of call and failure.
import { decorate } from './decorate.mjs';

const TRACE = ['traceparent', 'tracestate', 'baggage', 'x-correlation-id'];
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export function makeGrpcController(nest, given, state) {
  const { GrpcMethod, GrpcStreamCall, GrpcStreamMethod, RpcException } = nest.microservices;
  const { concat, EMPTY, finalize, from, interval, map, reduce, take, throwError } = nest.rxjs;
  const { NotFoundException } = nest.common;

  class Interop {}
  nest.common.Controller()(Interop);
  const define = (decorator, name, handler) => {
    Interop.prototype[name] = (data, metadata, call) => handler(data, metadata, call);
    decorate(Interop.prototype, name, decorator('Math', name));
  };
  const sum = (values) => ({ total: (values ?? []).reduce((total, number) => total + number, 0) });

  const failures = {
    rpc: ({ code, message }) => new RpcException(code === undefined ? { message } : { code, message }),
    string: ({ message }) => new RpcException(message),
    details: ({ code, message, details }) => new RpcException({ code, message, details }),
    error: ({ message }) => new Error(message),
    http: ({ message }) => new NotFoundException(message),
  };

  const unary = {
    Sum: ({ values }) => sum(values),
    Echo: (data) => data,
    Fail: async (data) => {
      if (data.kind === 'trailers') {
        const grpc = await nest.load('@grpc/grpc-js');
        const metadata = new grpc.Metadata();
        metadata.set('retry-after-ms', '250');
        metadata.set('reason-bin', Buffer.from(data.details ?? ''));
        throw new RpcException({ code: data.code, message: data.message, metadata });
      }
      throw failures[data.kind || 'rpc'](data);
    },
    Delay: async ({ ms, value }) => {
      await sleep(ms);
      return { total: value };
    },
    // getMap() joins repeated keys with ", "; binary ones come as base64.
    Metadata: (data, metadata) => ({
      values: Object.fromEntries(
        Object.entries(metadata.getMap()).map(([key, value]) => [key, Buffer.isBuffer(value) ? value.toString('base64') : value]),
      ),
    }),
    Flaky: ({ key, failures: wanted, code }) => {
      const calls = (state.calls.get(key) ?? 0) + 1;
      state.calls.set(key, calls);
      if (calls <= (wanted ?? 0)) throw new RpcException({ code: code || 14, message: 'not yet' });
      return { total: calls };
    },
    Big: ({ size }) => ({ text: 'x'.repeat(size) }),
    Nothing: () => undefined,
    Streams: () => state.streams,
    Forward: async ({ host, port, values }, metadata) => {
      const carried = Object.entries(metadata.getMap()).filter(([key]) => TRACE.includes(key));
      const proxy = await state.proxy({ transport: 'grpc', host, port });
      return proxy.send('Sum', { values }, Object.fromEntries(carried));
    },
    Count: ({ n = 0, ms, fail }) => {
      state.streams.started += 1;
      const numbers = (ms ? interval(ms).pipe(take(n)) : from([...Array(n).keys()])).pipe(map((value) => ({ value })));
      const end = fail ? throwError(() => new RpcException({ code: 5, message: 'not found after the values' })) : EMPTY;
      return concat(numbers, end).pipe(finalize(() => (state.streams.ended += 1)));
    },
  };
  for (const [name, handler] of Object.entries(unary)) define(GrpcMethod, name, handler);
  // proto3 leaves zeroes out, and the loader then leaves the field out.
  const valueOf = (number) => number.value ?? 0;
  define(GrpcStreamMethod, 'Gather', (numbers) =>
    numbers.pipe(reduce((total, number) => total + valueOf(number), 0), map((total) => ({ total }))),
  );
  define(GrpcStreamMethod, 'Double', (numbers) => numbers.pipe(map((number) => ({ value: 2 * valueOf(number) }))));

  Interop.prototype.GatherCall = (call, answer) => {
    let total = 0;
    call.on('data', (number) => (total += valueOf(number)));
    call.on('end', () => answer(null, { total }));
  };
  decorate(Interop.prototype, 'GatherCall', GrpcStreamCall('Math', 'GatherCall'));
  return { Interop, topics: [] };
}
