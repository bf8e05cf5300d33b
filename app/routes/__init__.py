"""One file a page: a route parses, asks `app.queries`, renders one template."""
