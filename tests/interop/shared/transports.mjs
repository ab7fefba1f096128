// From the tests' options to Nest's, for servers and clients; and each transport's place for metadata.
//
// Options: transport, host and port (tcp, grpc), url (brokers; for Kafka host:port), tls {ca, cert, key}
// (paths of PEM files), token, nkeySeed (NATS), sasl (Kafka), queue (RabbitMQ, NATS), hookOnly (a client's
// metadata goes into packets alone, as Nest's dispatch hook does), stamped (a server adds a key to its
// answers), and `options`, which is laid over what is made here and goes to Nest as it is.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

export const PROTO = fileURLToPath(new URL('./interop.proto', import.meta.url));

export const LOADER = { longs: String, enums: String, bytes: String, oneofs: true };

const LOADER_TYPES = { String, Number, Array, Object };

function pem(tls) {
  if (!tls) return undefined;
  const read = (path) => (path ? readFileSync(path) : undefined);
  const files = { ca: read(tls.ca), cert: read(tls.cert), key: read(tls.key) };
  return Object.fromEntries(Object.entries(files).filter(([, value]) => value));
}

function loader(given) {
  const named = Object.entries(given ?? {}).map(([key, value]) => [key, LOADER_TYPES[value] ?? value]);
  return given ? Object.fromEntries(named) : LOADER;
}

async function credentials(nest, side, tls) {
  const grpc = await nest.load('@grpc/grpc-js');
  const files = pem(tls);
  if (side === 'client') return grpc.credentials.createSsl(files.ca, files.key, files.cert);
  const pairs = [{ private_key: files.key, cert_chain: files.cert }];
  return grpc.ServerCredentials.createSsl(files.ca ?? null, pairs, Boolean(tls.requestCert));
}

const BUILD = {
  async tcp(nest, side, given) {
    const { host = '127.0.0.1', port, tls } = given;
    const server = { ...pem(tls), requestCert: tls?.requestCert, rejectUnauthorized: tls?.requestCert };
    return { host, port, ...(tls ? { tlsOptions: side === 'server' ? server : pem(tls) } : {}) };
  },
  async redis(nest, side, { url, tls }) {
    const { hostname, port, username, password, protocol } = new URL(url);
    const login = { username: decodeURIComponent(username) || undefined, password: decodeURIComponent(password) || undefined };
    return { host: hostname, port: Number(port), ...login, ...(protocol === 'rediss:' ? { tls: pem(tls) ?? {} } : {}) };
  },
  async nats(nest, side, { url, tls, token, nkeySeed, queue }) {
    const { host, username, password } = new URL(url);
    const options = { servers: [host], ...(side === 'server' && queue ? { queue } : {}) };
    if (password) Object.assign(options, { user: username, pass: password });
    else if (token ?? username) options.token = token ?? username;
    if (nkeySeed) {
      const nats = await nest.load(nest.natsPackage);
      options.authenticator = nats.nkeyAuthenticator(new TextEncoder().encode(nkeySeed));
    }
    if (tls) options.tls = { caFile: tls.ca, certFile: tls.cert, keyFile: tls.key };
    return options;
  },
  async rmq(nest, side, { url, tls, queue = 'interop' }) {
    return {
      urls: [url],
      queue,
      queueOptions: { durable: false },
      ...(tls ? { socketOptions: { connectionOptions: pem(tls) } } : {}),
    };
  },
  async mqtt(nest, side, { url, tls }) {
    return { url, protocolVersion: 5, ...pem(tls) };
  },
  async kafka(nest, side, given) {
    const kafkajs = await nest.load('kafkajs');
    return {
      client: {
        clientId: given.clientId ?? 'interop',
        brokers: [given.url.replace(/^kafka:\/\//, '')],
        logLevel: kafkajs.logLevel.NOTHING,
        ...(given.tls ? { ssl: pem(given.tls) } : {}),
        ...(given.sasl ? { sasl: given.sasl } : {}),
      },
      consumer: { groupId: given.groupId ?? `interop-${process.pid}`, maxWaitTimeInMs: 100 },
      // Nest says it is ready before its "latest" offset is known: the first record would be lost.
      subscribe: { fromBeginning: true },
    };
  },
  async grpc(nest, side, given) {
    const { host = '127.0.0.1', port, tls, options } = given;
    return {
      url: `${host}:${port}`,
      package: 'interop',
      protoPath: PROTO,
      ...(tls ? { credentials: await credentials(nest, side, tls) } : {}),
      loader: loader(options?.loader),
    };
  },
};

const TRANSPORT = { tcp: 'TCP', redis: 'REDIS', nats: 'NATS', rmq: 'RMQ', mqtt: 'MQTT', kafka: 'KAFKA', grpc: 'GRPC' };

// What Nest's createMicroservice() and ClientProxyFactory.create() take.
export async function nestOptions(nest, side, given) {
  const build = BUILD[given.transport];
  if (!build) throw new Error(`unknown transport ${given.transport}: one of ${Object.keys(BUILD)}`);
  const { loader: _, ...extra } = given.options ?? {};
  const options = { ...(await build(nest, side, given)), ...extra };
  return { transport: nest.microservices.Transport[TRANSPORT[given.transport]], options };
}

const text = (value) => (Buffer.isBuffer(value) ? value.toString() : value);

function entries(headers) {
  return Object.fromEntries(Object.entries(headers ?? {}).map(([key, value]) => [key, text(value)]));
}

// What a handler can read of the caller's metadata.
export const receivedMetadata = {
  tcp: (context) => context.getMetadata?.() ?? {},
  redis: (context) => context.getMetadata?.() ?? {},
  nats: (context) => {
    const headers = context.getHeaders();
    const one = (values) => (values.length > 1 ? values : values[0]);
    return headers ? Object.fromEntries(headers.keys().map((key) => [key, one(headers.values(key))])) : {};
  },
  rmq: (context) => entries(context.getMessage().properties.headers),
  mqtt: (context) => ({ ...context.getPacket().properties?.userProperties }),
  kafka: (context) => entries(context.getMessage().headers),
};

// The payload (or record) that carries metadata; TCP and Redis use the dispatch hook instead.
export const withMetadata = {
  tcp: async (nest, data) => data,
  redis: async (nest, data) => data,
  nats: async (nest, data, metadata) => {
    const { headers } = await nest.load(nest.natsPackage);
    const made = headers();
    for (const [key, value] of Object.entries(metadata)) made.append(key, value);
    return new nest.microservices.NatsRecordBuilder(data).setHeaders(made).build();
  },
  rmq: async (nest, data, metadata, options) =>
    new nest.microservices.RmqRecordBuilder(data).setOptions({ ...options, headers: metadata }).build(),
  mqtt: async (nest, data, metadata, { qos = 0 } = {}) =>
    new nest.microservices.MqttRecordBuilder(data).setQoS(qos).setProperties({ userProperties: metadata }).build(),
  kafka: async (nest, data, metadata, { key } = {}) => ({ value: data, headers: metadata, ...(key ? { key } : {}) }),
};
