"""Where jobs live. One contract (`base`), siblings that never import each other; read `memory` first."""
