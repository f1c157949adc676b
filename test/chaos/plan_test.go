// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func plan(seed uint64, n int) []Action {
	p := NewPlanner(seed)
	actions := make([]Action, n)
	for i := range actions {
		actions[i] = p.Next()
	}
	return actions
}

// A seed that a failure printed gives the same decisions again, and another one others.
func TestPlanIsRepeatable(t *testing.T) {
	if diff := cmp.Diff(plan(7, 500), plan(7, 500)); diff != "" {
		t.Errorf("two plans of one seed differ:\n%s", diff)
	}
	if cmp.Equal(plan(7, 50), plan(8, 50)) {
		t.Error("two seeds give one plan")
	}
}

// Whatever the seed: only what is there is deleted or killed, only who is up is asked, what is
// down comes up again, and quiet points come with everything up.
func TestPlanIsSound(t *testing.T) {
	const actions = 400
	kinds := map[Kind]int{}
	for seed := range uint64(200) {
		pods := map[string]bool{}
		replicas := map[string]int{"alpha": 1, "beta": 1}
		revisions := map[string]int{"alpha": 1, "beta": 1}
		down := map[string]int{} // since which action
		var rested int
		for _, a := range plan(seed, actions) {
			bad := func(why string) { t.Fatalf("seed %d: %v: %s", seed, a, why) }
			kinds[a.Kind]++
			needs := func(part string, up bool) {
				if _, isDown := down[part]; isDown == up {
					bad(part + " is not as the action needs it")
				}
			}
			switch a.Kind {
			case CreatePod:
				needs("API", true)
				if pods[a.Pod] || a.Pod == "" || a.Program == "" {
					bad("no new pod")
				}
				if pods[a.Pod] = true; len(pods) > maxPods {
					bad("too many pods")
				}
			case DeletePod:
				needs("API", true)
				if !pods[a.Pod] {
					bad("no such pod")
				}
				delete(pods, a.Pod)
			case ScalePool:
				needs("API", true)
				if a.Replicas == replicas[a.Template] || a.Replicas < 0 || a.Replicas > maxReplicas {
					bad("no change")
				}
				replicas[a.Template] = a.Replicas
			case ChangeTemplate:
				needs("API", true)
				if a.Revision != revisions[a.Template]+1 {
					bad("not the next revision")
				}
				revisions[a.Template] = a.Revision
			case KillNode, TerminateNode:
				needs("node", true)
				down["node"] = a.Number
			case StartNode:
				needs("node", false)
				delete(down, "node")
				if _, away := down["API"]; away {
					kinds["node starts without an API server"]++
				}
			case KillController:
				needs("controller", true)
				down["controller"] = a.Number
			case StartController:
				needs("controller", false)
				needs("API", true)
				delete(down, "controller")
			case KillAPI:
				needs("API", true)
				down["API"] = a.Number
			case StartAPI:
				needs("API", false)
				delete(down, "API")
			case Rest:
				if len(down) > 0 {
					bad("something is down at a quiet point")
				}
				rested = a.Number
			default:
			}
			for part, since := range down {
				if a.Number-since > controllerDownFor+apiDownFor+nodeDownFor {
					bad(part + " stays down")
				}
			}
			if a.Number-rested > restEvery+4 {
				bad("no quiet point for too long")
			}
		}
	}
	for _, k := range []Kind{CreatePod, DeletePod, ScalePool, ChangeTemplate, KillNode, TerminateNode, StartNode, KillMachine, KillController, StartController, KillAPI, StartAPI, Rest, "node starts without an API server"} {
		if kinds[k] == 0 {
			t.Errorf("no plan has %q", k)
		}
	}
}
