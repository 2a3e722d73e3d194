"""A table, an arm of primitives and up to five coloured cubes in MuJoCo, and a camera that needs no OpenGL.

Knows nothing of tasks, servos or sockets. The camera is `mujoco.mj_multiRay` with flat colours: about a
millisecond for a 64x64 image on one core, the same picture on every machine.
"""

from __future__ import annotations

import os
from functools import cache

os.environ.setdefault("MUJOCO_GL", "disable")  # no OpenGL is needed, and probing for it can fail the import

import mujoco
import numpy as np

from hotpolicy.robots.sim.kinematics import FOREARM, JOINTS, NAMES, SHOULDER_HEIGHT, UPPER_ARM, WRIST_TO_TIP

HALF = 0.017  # half the edge of a cube, m
COLOURS = {
    "red": ".9 .08 .08 1",
    "green": ".08 .75 .12 1",
    "blue": ".12 .2 .95 1",
    "yellow": ".95 .85 .05 1",
    "purple": ".55 .1 .7 1",
}
TIMESTEP = 0.005  # s
SUBSTEPS = 20  # physics steps per control tick
TICK = TIMESTEP * SUBSTEPS  # s, the 10 Hz control period
IMAGE_SIZE = 64  # pixels

_CUBE = """<body name="{name}" pos="1 0 {half}"><freejoint/><geom name="{name}" type="box" size="{half} {half} {half}"
 rgba="{rgba}" mass=".03" friction="1.2 .02 .001" condim="4"/></body>"""

_FINGER = """<body name="{name}" pos="0 0 .018" gravcomp="1">
 <joint name="{joint}" type="slide" axis="0 {side} 0" range="0 .036" damping="2" armature=".05"/>
 <geom name="{name}" type="box" size=".009 .004 .029" pos="0 {offset} .029" rgba=".1 .1 .1 1" mass=".02"
  friction="2 .05 .001" condim="4"/></body>"""

_SCENE = """<mujoco>
<compiler angle="radian"/>
<option timestep="{timestep}" integrator="implicitfast" cone="elliptic" impratio="5"/>
<default><geom solref="0.01 1"/><joint damping=".3" armature=".01"/><position kp="40" dampratio="1"/></default>
<worldbody>
<geom name="table" type="plane" size=".6 .6 .1" rgba=".72 .72 .70 1"/>
<geom type="cylinder" size=".045 .025" pos="0 0 .025" rgba=".15 .15 .15 1"/>
<body name="pan" pos="0 0 .05" gravcomp="1"><joint name="shoulder_pan" axis="0 0 1" range="-2.2 2.2"/>
<geom type="cylinder" size=".035 .03" pos="0 0 .03" rgba=".2 .2 .2 1" mass=".15" contype="0" conaffinity="0"/>
<body pos="0 0 {shoulder}" gravcomp="1"><joint name="shoulder_lift" axis="0 1 0" range="-1.7 1.7"/>
<geom type="capsule" fromto="0 0 0 0 0 {upper}" size=".016" rgba=".95 .95 .95 1" mass=".1" contype="0" conaffinity="0"/>
<body pos="0 0 {upper}" gravcomp="1"><joint name="elbow_flex" axis="0 1 0" range="0 2.8"/>
<geom type="capsule" fromto="0 0 0 0 0 {fore}" size=".014" rgba=".45 .45 .5 1" mass=".1" contype="0" conaffinity="0"/>
<body pos="0 0 {fore}" gravcomp="1"><joint name="wrist_flex" axis="0 1 0" range="-1 2.6"/>
<geom type="capsule" fromto="0 0 0 0 0 .03" size=".013" rgba=".25 .25 .25 1" mass=".05" contype="0" conaffinity="0"/>
<body pos="0 0 .03" gravcomp="1"><joint name="wrist_roll" axis="0 0 1" range="-2.5 2.5"/>
<geom name="palm" type="box" size=".012 .045 .008" pos="0 0 .01" rgba=".25 .25 .25 1" mass=".05"/>
<site name="tip" pos="0 0 {tip}" size=".004" rgba="0 0 0 0"/>
{fingers}
</body></body></body></body></body>
{cubes}
<camera name="front" pos=".46 0 .40" xyaxes="0 1 0 -.79 0 .61" fovy="46"/>
</worldbody>
<equality><joint joint1="gripper" joint2="gripper2"/></equality>
<actuator>{actuators}</actuator>
</mujoco>"""


def _xml() -> str:
    gains = {"wrist_roll": 'kp="10"', "gripper": 'kp="300" forcerange="-6 6" ctrlrange="0 .036"'}
    return _SCENE.format(
        timestep=TIMESTEP,
        shoulder=SHOULDER_HEIGHT - 0.05,
        upper=UPPER_ARM,
        fore=FOREARM,
        tip=WRIST_TO_TIP - 0.03,
        fingers=_FINGER.format(name="finger_left", joint="gripper", side=1, offset=0.004)
        + _FINGER.format(name="finger_right", joint="gripper2", side=-1, offset=-0.004),
        cubes="".join(_CUBE.format(name=name, half=HALF, rgba=rgba) for name, rgba in COLOURS.items()),
        actuators="".join(f'<position name="{n}" joint="{n}" {gains.get(n, "")}/>' for n in NAMES),
    )


@cache
def _model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(_xml())


# What an STS3215 at 12 V can do, N m. The gripper's slide is geared to its servo's range, 2.3 rad for 36 mm: N.
_STRENGTH = np.array([2.94] * 5 + [184.0])


class RayCamera:
    """A pinhole camera that casts one ray per pixel and paints what it hits in the geom's flat colour."""

    def __init__(self, model: mujoco.MjModel, name: str = "front", size: int = IMAGE_SIZE):
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        camera = model.camera(name).id
        self.model, self.size = model, size
        self.position = data.cam_xpos[camera].copy()
        self.rotation = data.cam_xmat[camera].reshape(3, 3).copy()
        self.half_view = float(np.tan(np.deg2rad(model.cam_fovy[camera]) / 2))
        grid = (np.arange(size) + 0.5) / size * 2 - 1
        right, up = np.meshgrid(grid, -grid)
        rays = np.stack([right * self.half_view, up * self.half_view, -np.ones_like(right)], -1).reshape(-1, 3)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        self._rays = np.ascontiguousarray(rays @ self.rotation.T).ravel()
        colours = (model.geom_rgba[:, :3] * 255).astype(np.uint8)
        self._colours = np.concatenate([colours, np.zeros((1, 3), np.uint8)])  # the last one: nothing was hit
        count = size * size
        self._hit = np.full(count, -1, np.int32)
        self._distance = np.zeros(count)
        # Newer MuJoCo asks for a buffer of surface normals; 3.3 does not know the argument.
        takes_normals = "normal:" in (mujoco.mj_multiRay.__doc__ or "")
        self._normals = {"normal": np.zeros(count * 3)} if takes_normals else {}

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """(size, size, 3) uint8 RGB."""
        mujoco.mj_multiRay(
            m=self.model, d=data, pnt=self.position, vec=self._rays, geomgroup=None, flg_static=1, bodyexclude=-1,
            geomid=self._hit, dist=self._distance, nray=self.size**2, cutoff=10.0, **self._normals,
        )  # fmt: skip
        return self._colours[self._hit].reshape(self.size, self.size, 3)

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) m -> image (..., 2): right and down, 0..1 across the picture."""
        seen = (np.asarray(points) - self.position) @ self.rotation
        depth = -seen[..., 2] * self.half_view
        return np.stack([0.5 + 0.5 * seen[..., 0] / depth, 0.5 - 0.5 * seen[..., 1] / depth], -1)


class Scene:
    """The physical world of one arm. Positions of the arm are simulator joints (rad, gripper m)."""

    def __init__(self, image_size: int = IMAGE_SIZE):
        self.model = _model()
        self.data = mujoco.MjData(self.model)
        self.camera = RayCamera(self.model, size=image_size)
        self._arm = [self.model.joint(joint.name).qposadr[0] for joint in JOINTS]
        self._twin = self.model.joint("gripper2").qposadr[0]
        self._cube = {c: self.model.jnt_qposadr[self.model.body(c).jntadr[0]] for c in COLOURS}
        self._body = {c: self.model.body(c).id for c in COLOURS}
        self._tip = self.model.site("tip").id
        self._geom = [self.model.geom(i).name for i in range(self.model.ngeom)]
        self._hand = {i for i, name in enumerate(self._geom) if name in ("finger_left", "finger_right", "palm")}
        self.touched: list[str] = []  # cubes the hand has met since the reset, in order

    def reset(self, joints: np.ndarray, cubes: dict[str, tuple[float, float, float]]) -> None:
        """Put the arm at `joints` and the cubes at (x m, y m, yaw rad); cubes not named wait out of sight."""
        mujoco.mj_resetData(self.model, self.data)
        for index, (colour, start) in enumerate(self._cube.items()):
            x, y, yaw = cubes.get(colour, (-0.5 - 0.1 * index, 0.0, 0.0))
            self.data.qpos[start : start + 7] = [x, y, HALF, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self.data.qpos[self._arm] = joints
        self.data.qpos[self._twin] = joints[5]
        self.data.ctrl[:] = joints
        mujoco.mj_forward(self.model, self.data)
        self.touched = []

    def advance(self, goal: np.ndarray, substeps: int = SUBSTEPS) -> None:
        """Let the position servos pull towards `goal` (6,) for `substeps` physics steps."""
        self.data.ctrl[:] = goal
        mujoco.mj_step(self.model, self.data, substeps)
        for first, second in self.data.contact.geom[: self.data.ncon].tolist():
            if (first in self._hand) != (second in self._hand):
                other = self._geom[second if first in self._hand else first]
                if other in COLOURS and other not in self.touched:
                    self.touched.append(other)

    def loads(self) -> np.ndarray:
        """(6,) what each motor pushes with, -1..1 of its strength."""
        return self.data.actuator_force / _STRENGTH

    def joints(self) -> np.ndarray:
        return self.data.qpos[self._arm].copy()

    def cube(self, colour: str) -> np.ndarray:
        """Centre of a cube, (3,) m."""
        return self.data.xpos[self._body[colour]].copy()

    def tip(self) -> np.ndarray:
        """Between the finger tips, (3,) m."""
        return self.data.site_xpos[self._tip].copy()

    def image(self) -> np.ndarray:
        return self.camera.render(self.data)
