// What `@decorator` before a method does: decorators may mend the descriptor in place or return another.
export function decorate(target, name, ...decorators) {
  let descriptor = Object.getOwnPropertyDescriptor(target, name);
  for (const decorator of decorators.reverse()) descriptor = decorator(target, name, descriptor) ?? descriptor;
  Object.defineProperty(target, name, descriptor);
}
