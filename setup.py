#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

import configparser
import os
import pathlib

import setuptools

# pbr makes a version of git's history, and none without git. With this a wheel
# has the same version, whatever it is made from.
setup_cfg = configparser.ConfigParser()
setup_cfg.read(pathlib.Path(__file__).with_name('setup.cfg'))
os.environ.setdefault('PBR_VERSION', setup_cfg['metadata']['version'])

setuptools.setup(setup_requires=['pbr>=6.1.1'], pbr=True)
