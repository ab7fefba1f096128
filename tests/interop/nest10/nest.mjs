// NestJS 10: CommonJS.
import 'reflect-metadata';
import common from '@nestjs/common';
import core from '@nestjs/core';
import microservices from '@nestjs/microservices';
import * as rxjs from 'rxjs';

export const nest = {
  version: 10,
  common,
  core,
  microservices,
  rxjs,
  natsPackage: 'nats',
  // Resolved from here, so that each version of Nest uses its own libraries.
  load: async (name) => {
    const module = await import(name);
    return module.default ?? module;
  },
};
