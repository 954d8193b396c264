"""What recipes of one purpose draw of their own records: one file beside each such recipe, a table and figures."""
