"""Which methods there are: out of `.proto` files, generated modules or a server's reflection."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from resilient_client.errors import ConfigurationError
from resilient_client.transports._options import near_miss
from resilient_client.transports.grpc._library import DescriptorPool, descriptor, descriptor_pb2
from resilient_client.transports.grpc._messages import Shape
from resilient_client.transports.grpc._methods import SchemaMethod
from resilient_client.transports.grpc._protoc import compile_protos

_method_route = re.compile(
    r"((?:[A-Za-z_]\w*\.)*)([A-Za-z_]\w*)/([A-Za-z_]\w*)", re.ASCII
).fullmatch
_FileProto = descriptor_pb2.FileDescriptorProto


@lru_cache(maxsize=1024)
def is_method_route(route: str) -> bool:
    """Whether a pattern is spelt as a method: `"Math/Sum"`, `"interop.Math/Sum"`."""
    return _method_route(route) is not None


class Schema:
    """Services by their names, full and, where only one has it, short."""

    def __init__(self, files: Iterable[bytes], package: str | None = None) -> None:
        self.pool = DescriptorPool()
        self.files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        self._package = package
        self.told: list[str] = []  # all services that a server has, those that are not here too
        self._services: dict[str, descriptor.ServiceDescriptor] = {}
        self._methods: dict[str, SchemaMethod] = {}
        self._shapes: dict[str, Shape] = {}
        self.add(files)

    def add(self, files: Iterable[bytes]) -> None:
        """More files, in whatever order; one that is known is left out.

        Raises:
            ConfigurationError: they contradict each other.
        """
        new = {}
        for raw in files:
            file = _FileProto.FromString(raw)
            if file.name not in self.files:
                new[file.name] = file
        for file in new.values():
            self._add(file, new)
        for file in new.values():
            for service in file.service:
                name = f"{file.package}.{service.name}" if file.package else service.name
                if self._package is None or file.package == self._package:
                    self._services[name] = self.pool.FindServiceByName(name)

    def _add(self, file: Any, new: dict[str, Any]) -> None:
        """Add a file behind those it imports."""
        if file.name in self.files:
            return
        self.files[file.name] = file
        for name in file.dependency:
            if name in new:
                self._add(new[name], new)
        try:
            self.pool.AddSerializedFile(file.SerializeToString())
        except TypeError as error:
            raise ConfigurationError(
                f"the schema of {file.name} cannot be used: {error}"
            ) from error

    @property
    def services(self) -> list[str]:
        """Their full names."""
        return list(self._services)

    def service(self, route: str) -> descriptor.ServiceDescriptor | None:
        """The service a route names, by its full name or what of it comes after the package.

        Raises:
            ConfigurationError: several have that name.
        """
        match = _method_route(route)
        if match is None:
            return None
        name = match[1] + match[2]
        known = self._services.get(name)
        if known is not None:
            return known
        ending = f".{name}"
        every = dict.fromkeys((*self._services, *filter(self._counts, self.told)))
        found = [full for full in every if full.endswith(ending)]
        if len(found) > 1:
            raise ConfigurationError(
                f"{route!r} may be a method of {' or '.join(sorted(found))}",
                hint="write the package too, or give package=",
            )
        return self._services.get(found[0]) if found else None

    def knows(self, route: str) -> bool:
        """Whether the method that a route names is here; errors as `service`."""
        if route in self._methods:
            return True
        service = self.service(route)
        return service is not None and route.rpartition("/")[2] in service.methods_by_name

    def _counts(self, name: str) -> bool:
        return self._package is None or name.rpartition(".")[0] == self._package

    def method(self, route: str) -> SchemaMethod | None:
        """The method a route names; None when no service here has such a name.

        Raises:
            ConfigurationError: its service is here, the method is not.
        """
        known = self._methods.get(route)
        if known is not None:
            return known
        service = self.service(route)
        if service is None:
            return None
        name = route.rpartition("/")[2]
        found = service.methods_by_name.get(name)
        if found is None:
            raise ConfigurationError(
                f"the service {service.full_name} has no method {name!r}",
                hint=near_miss(name, service.methods_by_name),
            )
        method = self._methods[route] = SchemaMethod(found, self._shapes)
        return method


def schema_of(proto: Any, includes: Any, package: str | None) -> Schema | None:
    """The schema that the options of an end describe; None when they give none.

    Args:
        proto: path of a `.proto`, a generated module (`..._pb2`), or several of either.
        includes: folders in which imports are looked for; in a URL separated as PATH is.
        package: the only one whose services count.

    Raises:
        ConfigurationError: they describe none that can be used.
    """
    if proto is None:
        return None
    paths: list[str] = []
    files: list[bytes] = []
    for each in _several(proto, "proto"):
        if isinstance(each, ModuleType | descriptor.FileDescriptor):
            files += files_of(getattr(each, "DESCRIPTOR", each))
        else:
            paths.append(os.fspath(each))
    if paths:
        folders = [os.fspath(each) for each in _several(includes or (), "includes")]
        compiled = descriptor_pb2.FileDescriptorSet.FromString(compile_protos(paths, folders))
        files += [file.SerializeToString() for file in compiled.file]
    schema = Schema(files, package)
    if not schema.services:
        where = "proto=" if package is None else f"the package {package!r}"
        raise ConfigurationError(f"there is no service in {where}")
    return schema


def _several(given: Any, option: str) -> Sequence[Any]:
    if isinstance(given, str):
        return [each for each in given.split(os.pathsep) if each]
    if isinstance(given, Path | ModuleType | descriptor.FileDescriptor):
        return [given]
    if isinstance(given, list | tuple):
        return given
    raise ConfigurationError(f"{option}= is a path, a generated module, or several of them")


def files_of(file: Any) -> list[bytes]:
    """A generated module's file and all it imports, those first."""
    if not isinstance(file, descriptor.FileDescriptor):
        raise ConfigurationError(
            "proto= was given a module that protoc has not generated", hint="give it the ..._pb2"
        )
    found: dict[str, bytes] = {}

    def visit(each: descriptor.FileDescriptor) -> None:
        if each.name not in found:
            for other in each.dependencies:
                visit(other)
            found[each.name] = each.serialized_pb

    visit(file)
    return list(found.values())
