// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// invariant is what must hold when all has settled.
type invariant struct {
	name  string
	check func(*world, context.Context) error
}

// invariants in the order in which they are cheap.
var invariants = []invariant{
	{"every pod is as its program, or something that was done to it, explains", (*world).podsExplained},
	{"pools are full and templates are ready", (*world).poolsFull},
	{"machines are the pods' and the pools', and the ledger says so", (*world).machinesAccounted},
	{"the ledger's capacity is what it was, and adds up", (*world).capacityKept},
	{"the node keeps nothing of what is gone", (*world).nothingLeft},
	{"no process, file or descriptor is left of what is gone", (*world).nothingHeld},
	{"what is in quarantine is there for something that was done to it", (*world).quarantineExplained},
	{"no machine was restored from a snapshot that was damaged", (*world).damageUnused},
	{"no pod was started more often than it was restarted, or twice at once", (*world).startedOnce},
	{"no run started twice, and no line of output is lost or told twice", (*world).logsWhole},
	{"every snapshot that was not damaged is whole", (*world).snapshotsVerify},
}

// cheap is how many of the invariants are asked again and again while all settles.
const cheap = 6

// rest waits until every invariant holds, and fails with those that do not in time. Everything
// must be up.
func (w *world) rest(t *testing.T) {
	t.Helper()
	w.rests++
	w.did[Rest]++
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), upTime)
	err := w.node.WaitReady(ctx)
	cancel()
	if err != nil {
		w.fail(t, "quiet point: %v", err)
		return
	}
	for told := began; ; {
		w.watch(t)
		broken := w.broken(t.Context())
		if len(broken) == 0 {
			w.note("   settled after %v", time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > settleTime || t.Failed() {
			w.fail(t, "not settled after %v:\n%s", time.Since(began).Round(time.Second), strings.Join(broken, "\n"))
			return
		}
		if time.Since(told) > tellTime {
			told = time.Now()
			w.note("   not settled yet:\n%s", strings.Join(broken, "\n"))
		}
		w.pause(t, time.Second)
	}
}

// broken are the invariants that do not hold. What costs much is asked when the rest holds.
func (w *world) broken(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, upTime)
	defer cancel()
	var broken []string
	for i, inv := range invariants {
		if i >= cheap && len(broken) > 0 {
			break
		}
		if err := inv.check(w, ctx); err != nil {
			broken = append(broken, fmt.Sprintf("NOT TRUE that %s: %v", inv.name, err))
		}
	}
	return broken
}

func (w *world) podsExplained(ctx context.Context) error {
	pods, err := w.pods(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range pods {
		b, known := w.born[p.Name]
		if !known {
			errs = append(errs, fmt.Errorf("pod %s was made by nobody", p.Name))
			continue
		}
		if err := judgePod(&p, b, fate{killed: w.lostMachine(ctx, &p), pressed: pressedSince(w.full, p.CreationTimestamp.Time)}); err != nil {
			errs = append(errs, fmt.Errorf("pod %s (%s) %w", p.Name, b.program, err))
		}
	}
	return errors.Join(errs...)
}

// lostMachine tells whether a machine of the pod was harmed: by the node's records at that
// time, or by the event that tells which machine it got.
func (w *world) lostMachine(ctx context.Context, p *corev1.Pod) bool {
	w.bereave()
	if w.bereaved[string(p.UID)] {
		return true
	}
	events, err := w.kube.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(p.UID)})
	if err != nil {
		return false
	}
	for _, e := range events.Items {
		for id := range w.killed {
			if strings.Contains(e.Message, id) {
				return true
			}
		}
	}
	return false
}

func (w *world) poolsFull(ctx context.Context) error {
	var errs []error
	for _, name := range Templates {
		p := &v1alpha1.WarmPool{}
		if err := w.objects.Get(ctx, ctrl.ObjectKey{Namespace: namespace, Name: name}, p); err != nil {
			return err
		}
		s, want := p.Status, int32(w.replicas[name])
		if s.ObservedGeneration != p.Generation || s.Desired != want || s.Ready != want || s.Restoring != 0 || s.Outdated != 0 {
			errs = append(errs, fmt.Errorf("pool %s of %d: %d desired, %d ready, %d restoring, %d outdated; %+v", name, want, s.Desired, s.Ready, s.Restoring, s.Outdated, s.Conditions))
		}
	}
	return errors.Join(errs...)
}

func (w *world) machinesAccounted(ctx context.Context) error {
	pods, err := w.pods(ctx)
	if err != nil {
		return err
	}
	ledger, err := w.ledger(ctx)
	if err != nil {
		return err
	}
	count := machineCount{
		processes: len(w.node.MachinePIDs()), directories: len(w.machineDirectories()),
		active: int(ledger.Status.ActiveMachines), warm: int(ledger.Status.WarmMachines),
	}
	for _, p := range pods {
		if p.Status.Phase == corev1.PodRunning {
			count.pods++
		}
	}
	for _, n := range w.replicas {
		count.ready += n
	}
	return judgeMachines(count)
}

func (w *world) machineDirectories() []string {
	entries, err := os.ReadDir(filepath.Join(w.node.StateDir, "machines"))
	if err != nil {
		return []string{err.Error()}
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (w *world) capacityKept(ctx context.Context) error {
	ledger, err := w.ledger(ctx)
	if err != nil {
		return err
	}
	s := ledger.Status
	var errs []error
	for _, r := range []struct {
		name                              string
		capacity, active, warm, available resource.Quantity
		before                            resource.Quantity
	}{
		{"cpu", s.Capacity.CPU, s.Active.CPU, s.Warm.CPU, s.Available.CPU, w.capacity.CPU},
		{"memory", s.Capacity.Memory, s.Active.Memory, s.Warm.Memory, s.Available.Memory, w.capacity.Memory},
		{"disk", s.Capacity.Disk, s.Active.Disk, s.Warm.Disk, s.Available.Disk, w.capacity.Disk},
	} {
		if w.rests > 1 && r.capacity.Cmp(r.before) != 0 {
			errs = append(errs, fmt.Errorf("capacity of %s is %v, was %v", r.name, &r.capacity, &r.before))
		}
		sum := r.active.DeepCopy()
		sum.Add(r.warm)
		sum.Add(r.available)
		if sum.Cmp(r.capacity) != 0 {
			errs = append(errs, fmt.Errorf("%s: %v active + %v warm + %v available is not %v", r.name, &r.active, &r.warm, &r.available, &r.capacity))
		}
	}
	return errors.Join(errs...)
}

// nothingLeft compares the node's folders with what exists: records of pods, records of warm
// machines, sockets, mounts, and what an interrupted build or write leaves.
func (w *world) nothingLeft(ctx context.Context) error {
	pods, err := w.pods(ctx)
	if err != nil {
		return err
	}
	var uids []string
	for _, p := range pods {
		uids = append(uids, string(p.UID))
	}
	machines := w.machineDirectories()
	var errs []error
	err = filepath.WalkDir(w.node.StateDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went meanwhile
			}
			return err
		}
		rel, err := filepath.Rel(w.node.StateDir, path)
		if err != nil {
			return err
		}
		part := strings.Split(filepath.ToSlash(rel), "/")
		switch {
		case part[0] == "pods" && len(part) == 2 && !slices.Contains(uids, part[1]):
			errs = append(errs, fmt.Errorf("%s: of a pod that is gone", rel))
		case part[0] == "warm" && len(part) == 2 && !d.IsDir() && !slices.Contains(machines, strings.TrimSuffix(part[1], ".json")):
			errs = append(errs, fmt.Errorf("%s: of a machine that is gone", rel))
		case d.Type()&fs.ModeSocket != 0 && part[0] != "machines" && rel != "node.sock": // which `vk-firkin gc` asks
			errs = append(errs, fmt.Errorf("%s: a socket of no machine", rel))
		case part[0] == "snapshots" && len(part) == 4 && part[1] == ".refs" && !slices.Contains(machines, part[3]):
			errs = append(errs, fmt.Errorf("%s: of a machine that is gone", rel))
		case part[0] == "snapshots" && len(part) == 2 && (strings.HasPrefix(part[1], ".building") || strings.HasPrefix(part[1], ".removing")):
			errs = append(errs, fmt.Errorf("%s: a build or a removal that nobody goes on with", rel))
		case part[0] != "machines" && strings.Contains(d.Name(), ".tmp"):
			errs = append(errs, fmt.Errorf("%s: a write that nobody goes on with", rel))
		}
		return nil
	})
	if err != nil {
		errs = append(errs, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts") // a Mac has none, and mounts nothing
	if err == nil && strings.Contains(string(mounts), w.node.StateDir) {
		errs = append(errs, errors.New("something is mounted below the node's folder"))
	}
	return errors.Join(errs...)
}

// quarantineExplained: a snapshot may be put aside for what was done to it or to its machines, a
// machine for nothing of what is done here.
func (w *world) quarantineExplained(context.Context) error {
	var errs []error
	instances := map[string]bool{}
	for i := range w.damaged {
		instances[i] = true
	}
	sets, err := filepath.Glob(filepath.Join(w.node.StateDir, "snapshots", ".quarantine", "*"))
	if err != nil {
		return err
	}
	for _, dir := range sets {
		data, err := os.ReadFile(filepath.Join(dir, "reason.json"))
		var a aside
		if err = errors.Join(err, json.Unmarshal(data, &a)); err != nil {
			errs = append(errs, fmt.Errorf("%s does not say why it is there: %w", dir, err))
			continue
		}
		var manifest struct {
			Template *struct{} `json:"template"`
		}
		data, err = os.ReadFile(filepath.Join(dir, "manifest.json"))
		a.base = err == nil && json.Unmarshal(data, &manifest) == nil && manifest.Template == nil
		errs = append(errs, judgeAside(a, instances, w.blamed))
	}
	machines, err := filepath.Glob(filepath.Join(w.node.StateDir, "quarantine", "*"))
	for _, path := range machines {
		data, _ := os.ReadFile(path)
		errs = append(errs, fmt.Errorf("a machine is in quarantine: %s: %s", filepath.Base(path), data))
	}
	return errors.Join(append(errs, err)...)
}

// damageUnused looks at what machines were restored from, since the damage.
func (w *world) damageUnused(context.Context) error {
	var errs []error
	for instance, d := range w.damaged {
		refs, err := filepath.Glob(filepath.Join(w.node.StateDir, "snapshots", ".refs", d.key, "*"))
		errs = append(errs, err)
		for _, ref := range refs {
			if content, err := os.ReadFile(ref); err == nil && strings.Contains(string(content), instance) && !slices.Contains(d.machines, ref) {
				errs = append(errs, fmt.Errorf("machine %s was restored from snapshot %.12s, instance %s", filepath.Base(ref), d.key, instance))
			}
		}
	}
	return errors.Join(errs...)
}

// startedOnce asks who was told by the programs themselves, whatever became of their machine
// and of its output.
func (w *world) startedOnce(ctx context.Context) error {
	pods, err := w.pods(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, fault := range w.witness.found() {
		errs = append(errs, errors.New(fault))
	}
	for pod, b := range w.born {
		if n := w.witness.starts(pod); n > 1 && !b.always {
			errs = append(errs, fmt.Errorf("pod %s was started %d times, and its policy is Never", pod, n))
		}
	}
	for _, p := range pods {
		restarts := 0
		for _, c := range p.Status.ContainerStatuses {
			restarts += int(c.RestartCount)
		}
		if n := w.witness.starts(p.Name); n > restarts+1 {
			errs = append(errs, fmt.Errorf("pod %s was started %d times, and says that it was restarted %d times", p.Name, n, restarts))
		}
	}
	return errors.Join(errs...)
}

// filesWhole reads the log files of all runs of a pod that there are, whether its node runs or
// not.
func (w *world) filesWhole(pod string, uid types.UID) error {
	b := w.born[pod]
	b.newest = w.revisions[b.template]
	files, err := filepath.Glob(filepath.Join(w.node.StateDir, "pods", string(uid), "logs", "*", "*.log"))
	errs := []error{err}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		text, cerr := criText(string(data))
		if err = errors.Join(err, cerr, judgeLog(text, b, false)); err != nil {
			errs = append(errs, fmt.Errorf("pod %s (%s), %s: %w", pod, b.program, filepath.Base(path), err))
		}
	}
	return errors.Join(errs...)
}

func (w *world) logsWhole(ctx context.Context) error {
	pods, err := w.pods(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range pods {
		errs = append(errs, w.filesWhole(p.Name, p.UID))
		b := w.born[p.Name]
		b.newest = w.revisions[b.template]
		if len(p.Status.ContainerStatuses) == 0 {
			continue // it never had one, see podsExplained
		}
		s := p.Status.ContainerStatuses[0]
		if s.State.Waiting != nil && s.LastTerminationState.Terminated == nil {
			continue
		}
		for _, previous := range []bool{false, true} {
			if previous && s.RestartCount == 0 {
				continue
			}
			log, err := w.kube.CoreV1().Pods(namespace).GetLogs(p.Name, &corev1.PodLogOptions{Previous: previous}).DoRaw(ctx)
			if err != nil {
				if previous || b.program == Crashing || w.lostMachine(ctx, &p) {
					continue // its machine died before it had said anything
				}
				errs = append(errs, fmt.Errorf("logs of pod %s: %w", p.Name, err))
				continue
			}
			// The last lines of a program that has ended may die with its machine.
			whole := !previous && ended(s, b.program) && !w.lostMachine(ctx, &p)
			if err := judgeLog(string(log), b, whole); err != nil {
				errs = append(errs, fmt.Errorf("pod %s (%s, previous run %v): %w", p.Name, b.program, previous, err))
			}
		}
	}
	return errors.Join(errs...)
}

// snapshotsVerify reads those that were not damaged. The node need not have found one that it
// does not use.
func (w *world) snapshotsVerify(ctx context.Context) error {
	args := []string{"snapshot", "verify", "--state-dir", w.node.StateDir, "--cache-dir", w.node.CacheDir}
	flags := len(args)
	manifests, err := filepath.Glob(filepath.Join(w.node.StateDir, "snapshots", "*", "manifest.json"))
	if err != nil {
		return err
	}
next:
	for _, path := range manifests {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		for instance := range w.damaged {
			if strings.Contains(string(data), instance) {
				continue next
			}
		}
		args = append(args, filepath.Base(filepath.Dir(path)))
	}
	if len(args) == flags {
		return nil
	}
	if out, err := exec.CommandContext(ctx, w.binary, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("vk-firkin snapshot verify: %w: %s", err, out)
	}
	return nil
}

// empty deletes all that there is, and checks that nothing of it is left on the host.
func (w *world) empty(t *testing.T) {
	t.Helper()
	w.note("delete everything")
	ctx, cancel := context.WithTimeout(t.Context(), upTime)
	defer cancel()
	grace := int64(1)
	errs := []error{w.kube.CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &grace}, metav1.ListOptions{})}
	for _, name := range Templates {
		errs = append(errs, w.objects.Delete(ctx, pool(name, 0)), w.objects.Delete(ctx, template(w.image, name, 0)))
		w.replicas[name] = 0
	}
	if err := errors.Join(errs...); err != nil {
		w.fail(t, "%v", err)
		return
	}
	for {
		left := append(w.node.Remnants(), w.grown(ctx)...)
		if pods, err := w.pods(ctx); err != nil || len(pods) > 0 {
			left = append(left, fmt.Sprintf("%d pods: %v", len(pods), err))
		}
		for _, check := range []func(context.Context) error{w.machinesAccounted, w.capacityKept, w.nothingLeft, w.nothingHeld, w.damageUnused} {
			if err := check(ctx); err != nil {
				left = append(left, err.Error())
			}
		}
		if len(left) == 0 {
			return
		}
		if ctx.Err() != nil {
			w.fail(t, "after all was deleted there are left:\n%s", strings.Join(left, "\n"))
			return
		}
		w.pause(t, time.Second)
	}
}

func (w *world) pods(ctx context.Context) ([]corev1.Pod, error) {
	list, err := w.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

func (w *world) ledger(ctx context.Context) (*v1alpha1.NodeLedger, error) {
	l := &v1alpha1.NodeLedger{}
	return l, w.objects.Get(ctx, ctrl.ObjectKey{Name: nodeName}, l)
}
