"""What pyproject.toml cannot say: the namespace ``optimum`` is Hugging Face's, and not a name that this package brings.

diffusers asks installed packages (top_level.txt) who brings ``optimum``. Were it reelquant, diffusers would say on stderr
that there are several, and take reelquant's version for optimum-quanto's.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.egg_info import egg_info


class EggInfo(egg_info):
    def run(self) -> None:
        super().run()
        names = Path(self.egg_info, "top_level.txt")
        names.write_text("\n".join(name for name in names.read_text().split() if name != "optimum") + "\n")


setup(cmdclass={"egg_info": EggInfo})
