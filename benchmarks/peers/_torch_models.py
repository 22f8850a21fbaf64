"""Networks of mace-torch, nequip 0.6 and nequip-allegro on one thread, behind one interface."""

import importlib

import numpy as np


def torch_of_one_thread():
    torch = importlib.import_module("torch")
    torch.serialization.add_safe_globals([slice])  # e3nn loads its own constants
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    return torch


class TorchModel:
    """``model(model.batch(structures), training)``: energies, forces and stresses.

    Neighbor lists are made once per structure. ``stress=False`` leaves stresses out, where
    that saves time. ``compiled=True`` gives nequip-allegro its own mode for training through
    `torch.compile`, which it uses for batches of two structures or more, and needs a C++ compiler;
    the programs of mace-torch and nequip 0.6 that train have no such mode.
    """

    def __init__(
        self,
        name,
        settings,
        cutoff,
        symbol,
        *,
        reference,
        scale,
        neighbors,
        stress=True,
        compiled=False,
        device="cpu",
    ):
        self.torch, self.name, self.device = torch_of_one_thread(), name, device
        self.cutoff, self.stress, self.graphs = cutoff, stress, {}
        common = (settings, cutoff, symbol, reference, scale, neighbors)
        if name == "allegro":
            common += (compiled,)
        elif compiled:
            raise ValueError(f"`compiled` is for allegro only, got {name!r}")
        build = {"mace": _mace, "nequip": _nequip, "allegro": _allegro}[name]
        self.model = build(*common).to(device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.size = sum(p.numel() for p in self.parameters)

    def graph(self, atoms):
        if id(atoms) not in self.graphs:
            from ase.neighborlist import neighbor_list

            i, j, shifts = neighbor_list("ijS", atoms, self.cutoff)
            self.graphs[id(atoms)] = np.stack([i, j]), shifts, atoms  # which keeps the id taken
        return self.graphs[id(atoms)][:2]

    def batch(self, structures):
        return {name: one.to(self.device) for name, one in self._batch(structures).items()}

    def _batch(self, structures):
        torch, graphs = self.torch, [self.graph(one) for one in structures]
        ptr = np.concatenate([[0], np.cumsum([len(one) for one in structures])])
        edges = np.concatenate([g[0] + p for g, p in zip(graphs, ptr, strict=False)], axis=1)
        units = np.concatenate([g[1] for g in graphs])
        cell = np.stack([one.cell.array for one in structures])
        shifts = [g[1] @ one.cell.array for g, one in zip(graphs, structures, strict=True)]
        owner = torch.tensor(np.repeat(np.arange(len(structures)), np.diff(ptr)))

        def real(value):
            return torch.tensor(value, dtype=torch.float32)

        positions = real(np.concatenate([one.positions for one in structures]))
        if self.name == "mace":
            return {
                "positions": positions,
                "node_attrs": torch.ones(int(ptr[-1]), 1),
                "edge_index": torch.tensor(edges),
                "shifts": real(np.concatenate(shifts)),
                "unit_shifts": real(units),
                "cell": real(cell.reshape(-1, 3)),
                "batch": owner,
                "ptr": torch.tensor(ptr),
                "head": torch.zeros(len(structures), dtype=torch.long),
            }
        kinds = {"atom_types": torch.zeros(int(ptr[-1]), dtype=torch.long)}
        if self.name == "allegro":
            kinds |= {"batch": owner, "num_atoms": torch.tensor(np.diff(ptr))}
        return kinds | {
            "pos": positions,
            "edge_index": torch.tensor(edges),
            "edge_cell_shift": real(units),
            "cell": real(cell if self.name == "allegro" else cell[0]),
        }

    def __call__(self, batch, training):
        self.model.train(training)
        if self.name == "mace":
            found = self.model(
                dict(batch), training=training, compute_force=True, compute_stress=self.stress
            )
            return found["energy"], found["forces"], found["stress"]
        found = self.model(dict(batch))
        return found["total_energy"].reshape(-1), found["forces"], found.get("stress")


def in_two(batch):
    """A batch of nequip-allegro counted as two structures: for one, it runs nothing compiled.

    Its first batch must be of two real ones, for it compiles with parts of them.
    """
    n_atoms = int(batch["num_atoms"].sum())
    half = n_atoms // 2
    owner, sizes = batch["batch"].clone(), batch["num_atoms"].new_tensor([half, n_atoms - half])
    owner[:half], owner[half:] = 0, 1
    cells = batch["cell"][:1].expand(2, 3, 3).contiguous()
    return {**batch, "batch": owner, "num_atoms": sizes, "cell": cells}


def _mace(settings, cutoff, symbol, reference, scale, neighbors):
    from ase.data import atomic_numbers

    torch = torch_of_one_thread()
    o3, modules = (importlib.import_module(name) for name in ("e3nn.o3", "mace.modules"))
    width, blocks = settings["n_channels"], modules.interaction_classes
    hidden = "+".join(f"{width}x{l}{'eo'[l % 2]}" for l in range(settings["hidden_l_max"] + 1))
    return modules.ScaleShiftMACE(
        r_max=cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=settings.get("l_max", 3),
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=1,
        hidden_irreps=o3.Irreps(hidden),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.array([reference]),
        avg_num_neighbors=neighbors,
        atomic_numbers=[atomic_numbers[symbol]],
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        atomic_inter_scale=scale,
        atomic_inter_shift=0.0,
    )


def _nequip(settings, cutoff, symbol, reference, scale, neighbors):
    """The published defaults of nequip 0.6, which are ours as well; energies are not rescaled."""
    del settings, reference, scale
    config = importlib.import_module("nequip.utils").Config
    models = importlib.import_module("nequip.model")
    chosen = config.from_dict(
        {
            "r_max": cutoff,
            "num_layers": 4,
            "l_max": 1,
            "parity": True,
            "num_features": 32,
            "num_basis": 8,
            "BesselBasis_trainable": True,
            "PolynomialCutoff_p": 6,
            "invariant_layers": 2,
            "invariant_neurons": 64,
            "avg_num_neighbors": neighbors,
            "use_sc": True,
            "nonlinearity_type": "gate",
            "nonlinearity_scalars": {"e": "silu", "o": "tanh"},
            "nonlinearity_gates": {"e": "silu", "o": "tanh"},
            "resnet": False,
            "num_types": 1,
            "type_names": [symbol],
            "model_dtype": "float32",
        }
    )
    models.SimpleIrrepsConfig(chosen)
    return models.ForceOutput(models.EnergyModel(chosen, initialize=False, dataset=None))


def _allegro(settings, cutoff, symbol, reference, scale, neighbors, compiled):
    importlib.import_module("nequip.utils.global_state").set_global_state()
    build = importlib.import_module("allegro.model").AllegroModel
    return build(
        seed=0,
        model_dtype="float32",
        compile_mode="compile" if compiled else "eager",
        r_max=cutoff,
        type_names=[symbol],
        l_max=settings["l_max"],
        parity=settings.get("parity", True),
        num_layers=settings["n_layers"],
        num_scalar_features=settings["n_scalars"],
        num_tensor_features=settings["n_tensors"],
        radial_chemical_embed={"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8},
        avg_num_neighbors=neighbors,
        per_type_energy_scales=scale,
        per_type_energy_shifts=reference,
    )
