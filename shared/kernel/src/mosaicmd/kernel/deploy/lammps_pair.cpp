// pair_style mosaicmd of LAMMPS: energies and forces by an exported program.
//
// LAMMPS moves atoms and ghosts between processors and owns the neighbor list. This side picks
// the edges that energies of owned atoms depend on, hands them to lammps_pair.py, and adds
// forces of ghosts to the ghosts, from where `newton on` sends them to their owners.

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"

using namespace LAMMPS_NS;

extern "C" {
int lammps_version(void *);  // of library.h

// What LAMMPS expects of a plugin (its manual: "Writing plugins").
struct lammpsplugin_t {
  const char *version, *style, *name, *info, *author;
  void *(*creator)(void *);
  void *handle;
};
void lammpsplugin_init(void *, void *, void *);
}

namespace {

constexpr int MESSAGE = 4096;  // bytes for an error

// Table of lammps_pair.py, which has the same list and keeps it until the process ends.
struct Functions {
  int (*create)(const char *file, const char *elements, double *cutoff, int *hops, char *message);
  int (*compute)(int model, int n_atoms, int n_own, int n_edges, const double *positions,
                 const int *elements, const int *senders, const int *receivers, double *energies,
                 double *forces, char *message);
  void (*destroy)(int model);  // null when Python is about to end
};
const Functions *functions = nullptr;

template <typename F> F *python(const char *name)
{
  return reinterpret_cast<F *>(dlsym(RTLD_DEFAULT, name));
}

// Ask Python for its table; what went wrong, in words, or nothing.
std::string connect()
{
  if (functions) return "";
  if (!dlsym(RTLD_DEFAULT, "Py_IsInitialized")) {
    if (!*MOSAICMD_LIBPYTHON)
      return "this Python has no shared library; start LAMMPS from Python instead of `lmp`";
    if (!dlopen(MOSAICMD_LIBPYTHON, RTLD_NOW | RTLD_GLOBAL)) return dlerror();
  }
  if (!python<int()>("Py_IsInitialized")()) {
    const bool own_home = !getenv("PYTHONHOME");
    if (own_home) setenv("PYTHONHOME", MOSAICMD_PYTHONHOME, 1);
    python<void(int)>("Py_InitializeEx")(0);
    if (own_home) unsetenv("PYTHONHOME");
    python<void *()>("PyEval_SaveThread")();
  }
  const std::string script = std::string("exec(") + MOSAICMD_SCRIPT + ", {'address': " +
      std::to_string(reinterpret_cast<std::uintptr_t>(&functions)) + "})\n";
  const int state = python<int()>("PyGILState_Ensure")();
  const int failed = python<int(const char *)>("PyRun_SimpleString")(script.c_str());
  python<void(int)>("PyGILState_Release")(state);
  if (failed) return "mosaicmd.kernel cannot be imported; the reason stands above";
  return "";
}

class PairMosaicMD : public Pair {
 public:
  PairMosaicMD(LAMMPS *lmp) : Pair(lmp)
  {
    single_enable = 0;
    restartinfo = 0;
    one_coeff = 1;
    manybody_flag = 1;
    centroidstressflag = CENTROID_NOTAVAIL;
    nextra = 1;  // number of compiled programs, for `compute pair`
    pvector = new double[1]{0.0};
  }

  ~PairMosaicMD() override
  {
    delete[] pvector;
    destroy();
    if (!allocated) return;
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }

  void settings(int narg, char **) override
  {
    if (narg) error->all(FLERR, "pair_style mosaicmd takes no arguments; pair_coeff names the model");
    if (strcmp(update->unit_style, "metal"))
      error->all(FLERR, "pair_style mosaicmd is in `units metal`, not in `units {}`",
                 update->unit_style);
    const std::string problem = connect();
    problem.copy(message, MESSAGE - 1);
    stop_together(!problem.empty());
  }

  void coeff(int narg, char **arg) override
  {
    if (narg < 4)
      error->all(FLERR, "expected `pair_coeff * * FILE ELEMENT ...`, an element for every type");
    if (!allocated) {
      const int n = atom->ntypes + 1;
      memory->create(setflag, n, n, "pair:setflag");
      memory->create(cutsq, n, n, "pair:cutsq");
      map = new int[n];
      allocated = 1;
    }
    map_element2type(narg - 3, arg + 3);
    std::string names;
    for (int i = 0; i < nelements; ++i) names += std::string(i ? " " : "") + elements[i];
    destroy();
    model = functions->create(arg[2], names.c_str(), &cutoff, &hops, message);
    stop_together(model < 0);
  }

  void init_style() override
  {
    if (!force->newton_pair) error->all(FLERR, "pair_style mosaicmd needs `newton on`");
    if (atom->molecular != Atom::ATOMIC)
      for (int i = 1; i < 4; ++i)
        if (force->special_lj[i] != 1.0 || force->special_coul[i] != 1.0)
          error->all(FLERR, "pair_style mosaicmd needs `special_bonds lj/coul 1 1 1`");
    if (hops == 1) {
      neighbor->add_request(this, NeighConst::REQ_FULL);
      return;
    }
    neighbor->add_request(this, NeighConst::REQ_FULL | NeighConst::REQ_GHOST);
    if (comm->mode != Comm::SINGLE)
      error->all(FLERR, "pair_style mosaicmd with message passing needs `comm_modify mode single`");
    const double reach = hops * cutoff + neighbor->skin;
    if (comm->cutghostuser < reach) {
      comm->cutghostuser = reach;
      if (comm->me == 0)
        utils::logmesg(lmp, "Energies depend on atoms {} hops of {} A away: ghost atoms reach {} A\n",
                       hops, cutoff, reach);
    }
  }

  double init_one(int i, int j) override
  {
    if (!setflag[i][j]) error->all(FLERR, "pair_coeff has no element for types {} and {}", i, j);
    return cutoff;
  }

  void compute(int eflag, int vflag) override
  {
    ev_init(eflag, vflag);
    if (vflag_atom || cvflag_atom)
      error->all(FLERR, "pair_style mosaicmd has no stress per atom; `compute pressure` works");
    find_edges();
    const int n_own = list->inum, n = atoms.size();
    int programs = 0;
    energies.resize(n);
    forces.resize(3 * n);
    if (n_own)
      programs = functions->compute(model, n, n_own, senders.size(), positions.data(), types.data(),
                                   senders.data(), receivers.data(), energies.data(),
                                   forces.data(), message);
    stop_together(programs < 0);
    if (n_own) pvector[0] = programs;
    for (int k = 0; k < n; ++k) {
      if (k < n_own) {
        if (eflag_global) eng_vdwl += energies[k];
        if (eflag_atom) eatom[atoms[k]] += energies[k];
      }
      for (int d = 0; d < 3; ++d) atom->f[atoms[k]][d] += forces[3 * k + d];
    }
    if (vflag_fdotr) virial_fdotr_compute();
  }

 private:
  int model = -1, hops = 0;
  double cutoff = 0.0;
  char message[MESSAGE] = "";
  std::vector<int> level, start, count, place;  // by LAMMPS index
  std::vector<int> atoms, types, neighbors, senders, receivers;
  std::vector<double> positions, energies, forces;

  void destroy()
  {
    if (model >= 0 && functions->destroy) functions->destroy(model);
  }

  // An error of one processor ends all with its message.
  void stop_together(bool failed)
  {
    int mine = failed ? comm->me : -1, worst;
    MPI_Allreduce(&mine, &worst, 1, MPI_INT, MPI_MAX, world);
    if (worst < 0) return;
    MPI_Bcast(message, MESSAGE, MPI_CHAR, worst, world);
    error->all(FLERR, std::string("pair_style mosaicmd: ") + message);
  }

  // Edges shorter than the cutoff whose receivers are less than `hops` away from an owned atom,
  // sorted by receiver, and the atoms at their ends: owned ones first, then ghosts.
  void find_edges()
  {
    const int n_all = atom->nlocal + atom->nghost;
    const int n_rows = list->inum + (hops > 1 ? list->gnum : 0);
    double **x = atom->x;
    level.assign(n_all, hops + 1);
    start.resize(n_all);
    count.assign(n_all, 0);
    place.resize(n_all);
    neighbors.clear();
    for (int row = 0; row < list->inum; ++row) level[list->ilist[row]] = 0;
    for (int hop = 0; hop < hops; ++hop)
      for (int row = 0; row < n_rows; ++row) {
        const int i = list->ilist[row];
        if (level[i] != hop) continue;
        start[i] = neighbors.size();
        for (int k = 0; k < list->numneigh[i]; ++k) {
          const int j = list->firstneigh[i][k] & NEIGHMASK;
          const double dx = x[j][0] - x[i][0], dy = x[j][1] - x[i][1], dz = x[j][2] - x[i][2];
          if (dx * dx + dy * dy + dz * dz >= cutoff * cutoff) continue;
          neighbors.push_back(j);
          if (level[j] > hop + 1) level[j] = hop + 1;
        }
        count[i] = neighbors.size() - start[i];
      }
    atoms.assign(list->ilist, list->ilist + list->inum);
    for (int i = atom->nlocal; i < n_all; ++i)
      if (level[i] <= hops) atoms.push_back(i);
    types.clear();
    positions.clear();
    senders.clear();
    receivers.clear();
    for (std::size_t k = 0; k < atoms.size(); ++k) {
      const int i = atoms[k];
      place[i] = k;
      types.push_back(map[atom->type[i]]);
      for (int d = 0; d < 3; ++d) positions.push_back(x[i][d] - x[atoms[0]][d]);
    }
    for (int i : atoms)
      for (int k = start[i]; k < start[i] + count[i]; ++k) {
        senders.push_back(place[neighbors[k]]);
        receivers.push_back(place[i]);
      }
  }
};

void *create_pair(void *lmp)
{
  return new PairMosaicMD(static_cast<LAMMPS *>(lmp));
}

}  // namespace

void lammpsplugin_init(void *lmp, void *handle, void *register_plugin)
{
  auto *lammps = static_cast<LAMMPS *>(lmp);
  if (MOSAICMD_LAMMPS && lammps_version(lmp) != MOSAICMD_LAMMPS)
    lammps->error->all(FLERR, "this plugin of mosaicmd is for LAMMPS {}, not for {}",
                       MOSAICMD_LAMMPS, lammps_version(lmp));
  static lammpsplugin_t plugin;
  plugin.version = lammps->version;
  plugin.style = "pair";
  plugin.name = "mosaicmd";
  plugin.info = "pair_style mosaicmd, exported models";
  plugin.author = "MosaicMD developers";
  plugin.creator = create_pair;
  plugin.handle = handle;
  reinterpret_cast<void (*)(lammpsplugin_t *, void *)>(register_plugin)(&plugin, lmp);
}
