from .node import Node
class Module(Node):
    pass
