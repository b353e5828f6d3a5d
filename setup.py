"""Installation; settings of tools are in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(
    "^__version__ = '(.+)'$", (ROOT / 'tas_lora/__init__.py').read_text('utf-8'), re.MULTILINE
).group(1)
FORMATS = {
    'onnx': ['onnx>=1.18', 'onnxruntime>=1.23', 'onnxscript>=0.6.2'],
    'timm': ['timm>=1.0.23'],
    'huggingface': ['transformers>=4.49'],
}
EXTRAS = {
    'demo': ['scikit-learn>=1.2'],
    'ray': ['ray>=2.52'],  # searches in several processes and on clusters
    'search': ['pymoo>=0.6.1', 'scikit-learn>=1.2', 'scipy>=1.11.3'],  # several goals; a surrogate
    **FORMATS,
    'export': sum(FORMATS.values(), []),
    'nas_lora': ['scikit-image>=0.22'],  # its photographs; projects/nas_lora
}
TESTS = ['hypothesis>=6.80', 'pytest>=7.0', 'pytest-xdist>=3.2', 'setuptools>=70.1']
EXTRAS['test'] = sorted({*sum(EXTRAS.values(), []), *TESTS})
EXTRAS['docs'] = ['mkdocs-jupyter>=0.25', 'mkdocs-material>=9.6', 'mkdocstrings[python]>=0.29']
TOOLS = ['codespell[toml]>=2.3', 'ipykernel', 'nbclient', 'pre-commit', 'proselint>=0.16']
TOOLS += ['pytest-cov>=7.0', 'ruff']
EXTRAS['dev'] = sorted({*EXTRAS['test'], *EXTRAS['docs'], *TOOLS})


class BuildWithMim(build_py):
    """Packs configs and tools into the wheel as ``tas_lora/.mim``, where MIM looks for them.

    An editable installation needs no copy: ``tas_lora.packaged`` finds them beside the package.
    """

    def run(self):
        target = Path(self.build_lib) / 'tas_lora' / '.mim'
        if not self.editable_mode:
            shutil.rmtree(target.parent, ignore_errors=True)  # files of an earlier build
        super().run()
        if self.editable_mode:
            return
        for name in ('configs', 'tools'):
            skip = shutil.ignore_patterns('__pycache__', 'results')
            shutil.copytree(ROOT / name, target / name, ignore=skip)
        # Former names: MIM takes a config by the name of its file, and would find two.
        for path in target.glob('configs/_base_/models/autoformer_?_*.py'):
            path.unlink()
        shutil.copy(ROOT / 'model-index.yml', target)


setup(
    name='tas-lora',
    version=VERSION,
    description='Vision-transformer architecture search with mixture-of-LoRA experts',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    cmdclass={'build_py': BuildWithMim},
    entry_points={'console_scripts': ['tas-lora = tas_lora.__main__:main']},
    packages=find_packages(include=['tas_lora', 'tas_lora.*']),
    package_data={
        'tas_lora.report': ['*.html', '*.css'],
        'tas_lora.export': ['*.jinja'],
        'tas_lora.shrink': ['*.html', 'templates/*.jinja'],
    },
    install_requires=[
        'torch>=2.10',  # older ones believe the sizes that a file declares
        'torchvision>=0.25',
        'filelock>=3.24',  # a lock whose file was deleted is not taken for one that holds
        'jinja2>=3.0',
        'lazy-loader>=0.4',
        'matplotlib>=3.6',
        'mmengine>=0.10.5',
        'mmpretrain>=1.2.0',
        'mmcv-lite>=2.0.0,<2.4.0',  # the range MMPretrain accepts
        'numpy>=1.26',
        'pillow>=10.0',
        'psutil>=5.9.4',
        'rich>=12.6',
        'safetensors>=0.4.3',
    ],
    extras_require=EXTRAS,
)
