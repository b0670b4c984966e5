"""What the sandbox does to a template's syntax tree: the meter's filters, no other files, and the generation tag."""

from __future__ import annotations

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.visitor import NodeTransformer


class Rewrite(NodeTransformer):
    """Puts the meter's filters into the syntax tree, and refuses what needs other files."""

    def visit_For(self, node):
        node = self.generic_visit(node)
        node.iter = _filter(node.iter, "_loop")
        return node

    def visit_Output(self, node):
        node = self.generic_visit(node)
        node.nodes = [
            _filter(
                nodes.Const(part.data, lineno=part.lineno) if isinstance(part, nodes.TemplateData) else part, "_made"
            )
            for part in node.nodes
        ]
        return node

    def _watched(self, node):
        return _filter(self.generic_visit(node), "_made")

    visit_Concat = _watched

    def _literal(self, node):
        node = self.generic_visit(node)
        # The target of an assignment (`set a, b = …`) is written as a tuple too, and must stay one.
        return node if getattr(node, "ctx", "load") != "load" else _filter(node, "_made")

    visit_List = visit_Dict = visit_Tuple = _literal

    def _refused(self, node):
        raise jinja2.TemplateSyntaxError("include, import and extends are not allowed in a chat template", node.lineno)

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _refused


def _filter(node, name: str):
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class GenerationTag(jinja2.ext.Extension):
    """{% generation %}…{% endgeneration %}: marks what the model is to learn, with the environment's `mark`."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller) -> str:
        mark = getattr(self.environment, "mark", "")
        return f"{mark}{caller()}{mark}"
