// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"fmt"
	"time"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// templateStatus says what is true of a template on all reachable nodes. Pure.
func templateStatus(f *fleet, t *managedTemplate, conflict string, now time.Time) v1alpha1.SnapshotTemplateStatus {
	s := v1alpha1.SnapshotTemplateStatus{ObservedGeneration: t.object.Generation, Revision: t.revision}
	if conflict == "" {
		s.RuntimeClassName = t.key.Name
	}
	var problems []problem
	for _, m := range f.nodes { // by name
		snapshot, ok := m.snapshots[snapshotKey{t.key, t.revision}]
		if !ok || m.State == NodeUnreachable {
			continue
		}
		switch snapshot.Phase {
		case v1alpha1.SnapshotReady:
			s.ReadyNodes++
		case v1alpha1.SnapshotFailed:
			s.FailedNodes++
			f := v1alpha1.TemplateFailure{Node: m.Name, Step: clip(snapshot.Step, 64), Message: clip(snapshot.Message, v1alpha1.MaxMessage), Output: clip(snapshot.Output, v1alpha1.MaxOutput)}
			if len(s.Failures) < v1alpha1.MaxFailures {
				s.Failures = append(s.Failures, f)
			}
			problems = append(problems, problem{v1alpha1.ReasonTemplateBuildFailed, buildFailure(f)})
		default:
			s.BuildingNodes++
		}
	}
	if t.problem != "" {
		problems = append(problems, problem{t.reason, t.problem})
	}
	if conflict != "" {
		problems = append(problems, problem{v1alpha1.ReasonRuntimeClassConflict, conflict})
	}
	bad := degraded(problems)
	progress := condition(v1alpha1.ConditionProgressing, s.BuildingNodes > 0, v1alpha1.ReasonComplete, "")
	if s.BuildingNodes > 0 {
		progress.Reason, progress.Message = v1alpha1.ReasonBuilding, plural(int(s.BuildingNodes), "node")+" building the snapshot"
	}
	ready := condition(v1alpha1.ConditionReady, true, v1alpha1.ReasonReady, plural(int(s.ReadyNodes), "node")+" with the snapshot")
	switch {
	case t.problem != "":
		ready = condition(v1alpha1.ConditionReady, false, t.reason, t.problem)
	case s.FailedNodes > 0:
		ready = condition(v1alpha1.ConditionReady, false, v1alpha1.ReasonTemplateBuildFailed, ready.Message+", "+fmt.Sprintf("%d failed", s.FailedNodes))
	case s.BuildingNodes > 0:
		ready = condition(v1alpha1.ConditionReady, false, v1alpha1.ReasonBuilding, ready.Message)
	case s.ReadyNodes == 0:
		ready = condition(v1alpha1.ConditionReady, false, v1alpha1.ReasonUnused, "no node has the snapshot: a WarmPool makes nodes build it ahead, or the first pod that uses the template does")
	}
	s.Conditions = merge(t.object.Status.Conditions, now, t.object.Generation, ready, progress, bad)
	return s
}

// buildFailure is a failure in one line, with what to do.
func buildFailure(f v1alpha1.TemplateFailure) string {
	remedy := "its output is in status.failures; correct the template, a change makes nodes try at once"
	if f.Step == "Pull" {
		remedy = "correct the image, or let the node reach the registry"
	}
	return fmt.Sprintf("node %s failed at %s: %s; %s", f.Node, cmp.Or(f.Step, "Build"), clip(f.Message, maxDetail), remedy)
}
