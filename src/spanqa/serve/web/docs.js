"use strict";
// Swagger UI, from the package swagger_ui_bundle, reads OpenAPI 3.0 and the server writes 3.1. What differs in ours is how "or null" is
// written; everything else is the same. It asks for openapi.json and nothing else: without a validator's address it tells nobody.

const older = (value) => {
  if (Array.isArray(value)) return value.map(older);
  if (value === null || typeof value !== "object") return value;
  const { anyOf, const: only, ...rest } = value;
  const found = Object.fromEntries(Object.entries(rest).map(([name, each]) => [name, older(each)]));
  if (only !== undefined) found.enum = [only];
  const kinds = anyOf?.filter((each) => each.type !== "null").map(older) ?? [];
  if (anyOf && kinds.length < anyOf.length) found.nullable = true;
  if (kinds.length > 1) found.anyOf = kinds;
  return kinds.length === 1 ? { ...kinds[0], ...found } : found;
};

fetch("openapi.json").then((response) => response.json()).then((spec) => {
  window.SwaggerUIBundle({
    spec: { ...older(spec), openapi: "3.0.3", servers: [{ url: new URL(".", location.href).href }] },
    dom_id: "#swagger",
    deepLinking: false,
    validatorUrl: null,
    presets: [window.SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
    syntaxHighlight: { activated: false },
  });
});
