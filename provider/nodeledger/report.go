// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// SkipInvalidTarget is the skip reason of a pool whose numbers the node does not take.
const SkipInvalidTarget = "InvalidTarget"

// maxUIDBytes is what the API server takes as a pod's UID in a status.
const maxUIDBytes = 64

// maxStepBytes is what the API server takes as the name of a step.
const maxStepBytes = 64

// report is everything that a status is computed from.
type report struct {
	generation int64
	status     warmpool.Status
	faults     []Fault
}

// statusOf computes the ledger's status. Transition times are taken from before, the
// status that the API server has. Pure.
func statusOf(r report, before *v1alpha1.NodeLedgerStatus, now time.Time) v1alpha1.NodeLedgerStatus {
	account := &r.status.Account
	s := v1alpha1.NodeLedgerStatus{
		ObservedGeneration: r.generation,
		Capacity:           amounts(account.Capacity), Active: amounts(account.Active), Warm: amounts(account.Warm), Available: amounts(account.Available),
	}
	s.WithheldSlots = small(int(account.Withheld.Slots))
	for _, m := range account.Machines {
		if m.IsBuild() {
			continue
		}
		if m.Warm {
			s.WarmMachines++
		} else {
			s.ActiveMachines++
		}
	}
	s.Pools = poolStatuses(&r)
	s.Snapshots = snapshotStatuses(&r)
	s.QuarantinedMachines, s.Quarantined = small(len(r.status.Quarantined)), quarantined(r.status.Quarantined)
	for _, c := range before.Conditions {
		s.Conditions = append(s.Conditions, *c.DeepCopy())
	}
	for _, c := range conditions(&s, account.Withheld.Message) {
		c.ObservedGeneration, c.LastTransitionTime = r.generation, seconds(now)
		meta.SetStatusCondition(&s.Conditions, c)
	}
	return s
}

// quarantined tells of the machines in quarantine, those that were found first.
func quarantined(all []warmpool.Quarantined) []v1alpha1.QuarantinedMachine {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b warmpool.Quarantined) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Machine, b.Machine))
	})
	var list []v1alpha1.QuarantinedMachine
	for _, q := range all[:min(len(all), v1alpha1.MaxQuarantined)] {
		since := seconds(q.Since)
		list = append(list, v1alpha1.QuarantinedMachine{
			Machine: q.Machine, PodUID: bound(q.PodUID, maxUIDBytes), Reason: bound(q.Reason, v1alpha1.MaxMessage), Since: &since,
		})
	}
	return list
}

func amounts(b warmpool.Budget) v1alpha1.Amounts {
	return v1alpha1.Amounts{
		CPU: *resource.NewMilliQuantity(b.MilliCPU, resource.DecimalSI), Memory: *resource.NewQuantity(b.MemoryBytes, resource.BinarySI),
		Disk: *resource.NewQuantity(b.DiskBytes, resource.BinarySI), Slots: small(int(b.Slots)),
	}
}

func poolStatuses(r *report) []v1alpha1.PoolStatus {
	var list []v1alpha1.PoolStatus
	faults := map[string]Fault{}
	for _, f := range r.faults {
		faults[f.Namespace+"/"+f.Pool] = f
	}
	for _, p := range r.status.Pools {
		namespace, name, _ := strings.Cut(p.Pool, "/")
		st := v1alpha1.PoolStatus{
			Namespace: namespace, Pool: name, Revision: p.Revision, Desired: small(p.Desired), Ready: small(p.Ready), Restoring: small(p.Restoring),
			Outdated: small(p.Outdated), Active: small(p.Active), SkipReason: string(p.Skip), Message: bound(p.Message, v1alpha1.MaxMessage),
		}
		if !p.UnmetSince.IsZero() {
			since := seconds(p.UnmetSince)
			st.UnmetSince = &since
		}
		if f, ok := faults[p.Pool]; ok {
			st.SkipReason, st.Message = f.reason(), bound("The former target is kept: "+f.Message, v1alpha1.MaxMessage)
			delete(faults, p.Pool)
		}
		list = append(list, st)
	}
	for _, f := range faults {
		list = append(list, v1alpha1.PoolStatus{Namespace: f.Namespace, Pool: f.Pool, Revision: f.Revision, Desired: small(f.Desired),
			SkipReason: f.reason(), Message: bound(f.Message, v1alpha1.MaxMessage)})
	}
	slices.SortFunc(list, func(a, b v1alpha1.PoolStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pool, b.Pool))
	})
	return list
}

func (f Fault) reason() string {
	if f.OfTemplate {
		return string(warmpool.SkipSnapshotNotReady)
	}
	return SkipInvalidTarget
}

// snapshotStatuses has those of the supply, and those that no snapshot can be made of.
func snapshotStatuses(r *report) []v1alpha1.SnapshotStatus {
	byKey := map[templateKey]v1alpha1.SnapshotStatus{}
	for _, f := range r.faults {
		if f.OfTemplate {
			byKey[templateKey{f.Namespace, f.Template, f.Revision}] = v1alpha1.SnapshotStatus{
				Namespace: f.Namespace, Template: f.Template, Revision: f.Revision, Phase: v1alpha1.SnapshotFailed, Message: bound(f.Message, v1alpha1.MaxMessage)}
		}
	}
	for _, t := range r.status.Templates {
		st := v1alpha1.SnapshotStatus{
			Namespace: t.Namespace, Template: t.Name, Revision: t.Revision, Phase: v1alpha1.SnapshotPhase(t.Phase), Key: t.Key,
			Step: bound(t.Step, maxStepBytes), Message: bound(t.Message, v1alpha1.MaxMessage), Output: bound(t.Output, v1alpha1.MaxOutput),
			BuildMillis: t.Build.Milliseconds(), SaveMillis: t.Save.Milliseconds(),
		}
		if !t.RetryAt.IsZero() {
			at := seconds(t.RetryAt)
			st.RetryAt = &at
		}
		byKey[templateKey{t.Namespace, t.Name, t.Revision}] = st
	}
	list := make([]v1alpha1.SnapshotStatus, 0, len(byKey))
	for _, st := range byKey {
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b v1alpha1.SnapshotStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Template, b.Template), cmp.Compare(a.Revision, b.Revision))
	})
	return list[:min(len(list), v1alpha1.MaxNodeEntries)]
}

// conditions say in a word how the node does. Messages name pools and templates.
// withheld says why slots are.
func conditions(s *v1alpha1.NodeLedgerStatus, withheld string) []metav1.Condition {
	var short, skipped, building []string
	if withheld != "" {
		skipped = append(skipped, withheld)
	}
	restoring := int32(0)
	for _, p := range s.Pools {
		name := p.Namespace + "/" + p.Pool
		restoring += p.Restoring
		if p.Ready < p.Desired {
			short = append(short, fmt.Sprintf("%s has %d of %d", name, p.Ready, p.Desired))
		}
		if p.SkipReason != "" && p.SkipReason != string(warmpool.SkipAlreadyWarm) {
			skipped = append(skipped, fmt.Sprintf("%s: %s", name, p.SkipReason))
		}
	}
	for _, t := range s.Snapshots {
		switch t.Phase {
		case v1alpha1.SnapshotBuilding:
			building = append(building, t.Namespace+"/"+t.Template)
		case v1alpha1.SnapshotFailed:
			skipped = append(skipped, fmt.Sprintf("template %s/%s failed", t.Namespace, t.Template))
		default:
		}
	}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady}
	if len(short) > 0 {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, v1alpha1.ReasonFilling, joined(short)
		if restoring == 0 && len(skipped) > 0 {
			ready.Reason = v1alpha1.ReasonNodeSkipped
		}
	}
	progressing := metav1.Condition{Type: v1alpha1.ConditionProgressing, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonComplete}
	switch {
	case restoring > 0:
		progressing.Status, progressing.Reason, progressing.Message = metav1.ConditionTrue, v1alpha1.ReasonFilling, fmt.Sprintf("%d machines are on the way", restoring)
	case len(building) > 0:
		progressing.Status, progressing.Reason, progressing.Message = metav1.ConditionTrue, v1alpha1.ReasonBuilding, joined(building)
	}
	degraded := metav1.Condition{Type: v1alpha1.ConditionDegraded, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonAsExpected}
	if len(skipped) > 0 {
		degraded.Status, degraded.Reason = metav1.ConditionTrue, v1alpha1.ReasonNodeSkipped
	}
	if s.QuarantinedMachines > 0 { // somebody has to look, and the rest waits for itself
		degraded.Status, degraded.Reason = metav1.ConditionTrue, v1alpha1.ReasonMachinesQuarantined
		skipped = append([]string{inQuarantine(s)}, skipped...)
	}
	degraded.Message = joined(skipped)
	return []metav1.Condition{ready, progressing, degraded}
}

// inQuarantine says which machines are in quarantine, and what to do about it.
func inQuarantine(s *v1alpha1.NodeLedgerStatus) string {
	const names = 3 // the status has more
	var list []string
	for _, q := range s.Quarantined[:min(len(s.Quarantined), names)] {
		list = append(list, q.Machine)
	}
	if int(s.QuarantinedMachines) > len(list) {
		list = append(list, "and others")
	}
	return fmt.Sprintf("%d machines are in quarantine (%s): vk-firkin quarantine on the node shows why, and removes them", s.QuarantinedMachines, strings.Join(list, ", "))
}

// joined is a list for people, cut where it gets long.
func joined(list []string) string { return bound(strings.Join(list, "; "), v1alpha1.MaxMessage) }

// seconds is a time as the API server keeps it: what was written must compare equal to
// what comes back.
func seconds(t time.Time) metav1.Time { return metav1.NewTime(t.UTC().Truncate(time.Second)) }

// small is a count for the API.
func small(n int) int32 {
	return int32(min(max(n, 0), math.MaxInt32)) //nolint:gosec // bounded
}

// bound cuts text to at most n bytes of valid UTF-8: commands of templates write what they like.
func bound(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	const mark = "..."
	return strings.ToValidUTF8(s[:n-len(mark)], "") + mark
}
