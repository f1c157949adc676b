// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"os"
	"regexp"
	"slices"
	"strconv"
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
		need := map[string]int{"API": 3, "node": 4, "node's time": 5, "controller": 8, "disk": 6, "machine": 3}
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
				if a.Always && a.Program == Crashing {
					bad("it never settles")
				}
				if pods[a.Pod] || a.Pod == "" || a.Program == "" {
					bad("no new pod")
				}
				if pods[a.Pod] = true; len(pods) > maxPods {
					bad("too many pods")
				}
			case DeletePod, EvictPod:
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
			case ChangeTemplate, KillBuild:
				needs("API", true)
				if a.Revision != revisions[a.Template]+1 {
					bad("not the next revision")
				}
				revisions[a.Template] = a.Revision
				if a.Kind == KillBuild {
					needs("node", true)
					needs("node's time", true)
					needs("controller", true)
					needs("disk", true)
					if replicas[a.Template] == 0 {
						bad("nobody builds it")
					}
				}
			case KillNode:
				needs("node", true)
				down["node"] = a.Number
				delete(down, "node's time")
			case TerminateNode:
				needs("node", true)
				needs("node's time", true) // or it does not hear of it
				down["node"] = a.Number
			case StartNode:
				needs("node", false)
				delete(down, "node")
				if _, away := down["API"]; away {
					kinds[startsAlone]++
				}
			case StopNode:
				needs("node", true)
				needs("node's time", true)
				down["node's time"] = a.Number
			case ContinueNode:
				needs("node's time", false)
				delete(down, "node's time")
			case DamageSnapshot, SilenceAgent:
				needs("node", false)
			case CollectGarbage:
				needs("node's time", true) // who would answer?
			case StopMachine:
				needs("machine", true)
				if !a.Left {
					down["machine"] = a.Number
				}
			case ContinueMachine:
				needs("machine", false)
				delete(down, "machine")
			case FillDisk:
				needs("disk", true)
				down["disk"] = a.Number
			case MakeRoom:
				needs("disk", false)
				delete(down, "disk")
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
			case RestartAll:
				if sorted := slices.Sorted(slices.Values(a.Order)); !slices.Equal(sorted, []Kind{StartAPI, StartController, StartNode}) {
					bad("not all is started")
				}
				for _, part := range []string{"API", "node", "node's time", "controller"} {
					delete(down, part)
				}
			case Rest:
				if len(down) > 0 {
					bad("something is down at a quiet point")
				}
				rested = a.Number
			default:
			}
			for part, since := range down {
				if a.Number-since > need[part]+len(need) { // others may come first
					bad(part + " stays down")
				}
			}
			if a.Number-rested > restEvery+len(need)+1 {
				bad("no quiet point for too long")
			}
		}
	}
	for _, k := range append(Kinds(), startsAlone) {
		if kinds[k] == 0 {
			t.Errorf("no plan has %q", k)
		}
		delete(kinds, k)
	}
	for k := range kinds {
		t.Errorf("%q is no kind", k)
	}
}

// The short run of every test does everything at least once: it comes to at least as many actions.
func TestShortPlanHasEveryKind(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	given := regexp.MustCompile(`CHAOS_SEED:-(\d+)`).FindSubmatch(makefile)
	if given == nil {
		t.Fatal("the Makefile gives the short run no seed")
	}
	seed, err := strconv.ParseUint(string(given[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	missing := append(Kinds(), startsAlone)
	away := false
	for _, a := range plan(seed, shortPlan) {
		away = (away || a.Kind == KillAPI) && a.Kind != StartAPI && a.Kind != RestartAll
		missing = slices.DeleteFunc(missing, func(k Kind) bool {
			return k == a.Kind || k == startsAlone && a.Kind == StartNode && away
		})
	}
	if len(missing) > 0 {
		t.Errorf("the first %d actions of seed %d have no %q", shortPlan, seed, missing)
	}
}

const (
	shortPlan   = 60
	startsAlone = "node starts without an API server"
)
