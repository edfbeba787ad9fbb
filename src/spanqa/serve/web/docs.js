"use strict";
// Swagger UI, from the package swagger_ui_bundle. Without a validator's address it asks for openapi.json and nothing else.
window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger",
  deepLinking: false,
  validatorUrl: null,
  presets: [window.SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  syntaxHighlight: { activated: false },
});
