// A REST service as NestJS writes one.
import { decorate } from './decorate.mjs';
import { logger } from './logger.mjs';

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export async function serveHttp(nest, given, state) {
  const { Body, Controller, Delete, Get, Header, Headers, HttpCode, HttpException, Param, Patch, Post, Put, Query, Req, Res, Sse } =
    nest.common;
  const { interval, map, take } = nest.rxjs;

  class Rest {}
  Controller()(Rest);
  const users = new Map([['1', { id: '1', name: 'Zoë' }]]);
  const known = (id) => {
    if (!users.has(id)) throw new nest.common.NotFoundException(`no user ${id}`);
    return users.get(id);
  };
  let serial = 0;
  const define = (name, decorators, parameters, handler) => {
    Rest.prototype[name] = handler;
    for (const [index, parameter] of parameters.entries()) parameter(Rest.prototype, name, index);
    decorate(Rest.prototype, name, ...decorators);
  };

  define('list', [Get('users')], [Query()], (query) => ({ users: [...users.values()], query }));
  define('get', [Get('users/:id')], [Param('id'), Query()], (id, query) => ({ ...known(id), ...(Object.keys(query).length ? { query } : {}) }));
  define('create', [Post('users')], [Body()], (body) => {
    if (typeof body?.name !== 'string') throw new nest.common.BadRequestException(['name must be a string']);
    const user = { ...body, id: `new-${++serial}` };
    users.set(user.id, user);
    return user;
  });
  define('replace', [Put('users/:id')], [Param('id'), Body()], (id, body) => {
    users.set(id, { ...body, id });
    return users.get(id);
  });
  define('patch', [Patch('users/:id')], [Param('id'), Body()], (id, body) => Object.assign(known(id), body));
  define('remove', [Delete('users/:id'), HttpCode(204)], [Param('id')], (id) => {
    known(id);
    users.delete(id);
  });

  // A plain pattern: POST /{route} with a JSON body.
  define('sum', [Post('sum'), HttpCode(200)], [Body()], (body) => body.reduce((total, number) => total + number, 0));
  define('echo', [Post('echo'), HttpCode(200)], [Body()], (body) => body);
  define('headers', [Get('headers')], [Headers()], (headers) => headers);
  define('text', [Get('text'), Header('Content-Type', 'text/plain; charset=utf-8')], [], () => 'grüße 😀');
  define('empty', [Get('empty'), HttpCode(204)], [], () => undefined);
  define('big', [Get('big/:size')], [Param('size')], (size) => ({ text: 'x'.repeat(Number(size)) }));

  define('error', [Get('errors/:status')], [Param('status')], (status) => {
    throw new HttpException({ statusCode: Number(status), message: `error ${status}`, error: 'Made' }, Number(status));
  });
  define('crash', [Get('crash')], [], () => {
    throw new Error('a secret of the service');
  });
  // 429 with Retry-After in seconds (or the header's other form, ?date=1).
  define('busy', [Get('busy/:seconds')], [Param('seconds'), Query('date'), Res({ passthrough: true })], (seconds, date, response) => {
    const at = new Date(Date.now() + Number(seconds) * 1000).toUTCString();
    response.setHeader('Retry-After', date ? at : seconds);
    throw new HttpException({ statusCode: 429, message: 'Too Many Requests' }, 429);
  });
  // Fails the first `failures` calls for the key with `status`.
  define('flaky', [Get('flaky/:key')], [Param('key'), Query()], (key, { failures = '1', status = '503' }) => {
    const calls = (state.calls.get(key) ?? 0) + 1;
    state.calls.set(key, calls);
    if (calls <= Number(failures)) throw new HttpException({ statusCode: Number(status), message: 'not yet' }, Number(status));
    return { calls };
  });
  define('calls', [Get('calls/:key')], [Param('key')], (key) => ({ calls: state.calls.get(key) ?? 0 }));
  // Counts as left when the caller went away first.
  define('slow', [Get('slow/:ms')], [Param('ms'), Req()], async (ms, request) => {
    state.streams.started += 1;
    let left = false;
    request.res.once('close', () => (left = !request.res.writableEnded));
    await sleep(Number(ms));
    state.streams.ended += left ? 0 : 1;
    return { slept: Number(ms), left };
  });
  define('streams', [Get('streams')], [], () => state.streams);
  define('count', [Sse('count/:n')], [Param('n'), Query('ms')], (n, ms = '1') =>
    interval(Number(ms)).pipe(take(Number(n)), map((value) => ({ data: { value } }))),
  );

  class App {}
  nest.common.Module({ controllers: [Rest] })(App);
  const app = await nest.core.NestFactory.create(App, { logger, abortOnError: false, ...given.options });
  const host = given.host ?? '127.0.0.1';
  await app.listen(given.port ?? 0, host);
  return { ready: { url: await app.getUrl() }, close: () => app.close() };
}
