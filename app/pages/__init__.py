"""One file a page: a route parses, asks `app.study.queries`, renders one template."""
