// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podhistory_test

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/test/podhistory"
)

func TestFaults(t *testing.T) {
	const (
		running = `"name":"c","containerID":"x://1","started":true,"state":{"running":{"startedAt":"2026-01-01T00:00:01Z"}}`
		ended   = `"name":"c","containerID":"x://1","state":{"terminated":{"startedAt":"2026-01-01T00:00:01Z","finishedAt":"2026-01-01T00:00:02Z"}}`
		ready   = `{"type":"Ready","status":"True","lastTransitionTime":"2026-01-01T00:00:05Z"},{"type":"ContainersReady","status":"True"}`
	)
	for _, tt := range []struct{ name, before, after, want string }{
		{"a life", `{"phase":"Pending"}`, `{"phase":"Running","conditions":[` + ready + `],"containerStatuses":[{` + running + `,"ready":true}]}`, ""},
		{"its end", `{"phase":"Running","containerStatuses":[{` + running + `,"ready":true}]}`, `{"phase":"Failed","containerStatuses":[{` + ended + `}]}`, ""},
		{"another run", `{"phase":"Running","containerStatuses":[{` + ended + `}]}`, `{"phase":"Running","containerStatuses":[{"name":"c","containerID":"x://2","restartCount":1,"state":{"running":{}}}]}`, ""},
		{"a pod that begins to run is pending again", `{"phase":"Running"}`, `{"phase":"Pending"}`, "from phase Running to Pending"},
		{"the dead rise", `{"phase":"Failed"}`, `{"phase":"Running"}`, "from phase Failed to Running"},
		{"a verdict is changed", `{"phase":"Succeeded"}`, `{"phase":"Failed"}`, "from phase Succeeded to Failed"},
		{"another start", `{"startTime":"2026-01-01T00:00:01Z"}`, `{"startTime":"2026-01-01T00:00:02Z"}`, "start time"},
		{"no start", `{"startTime":"2026-01-01T00:00:01Z"}`, `{}`, "start time"},
		{"a container rises", `{"containerStatuses":[{` + ended + `}]}`, `{"containerStatuses":[{` + running + `}]}`, "runs again"},
		{"a container runs since another time", `{"containerStatuses":[{` + running + `}]}`, `{"containerStatuses":[{` + strings.ReplaceAll(running, ":01Z", ":03Z") + `}]}`, "runs since"},
		{"restarts are forgotten", `{"initContainerStatuses":[{"name":"c","restartCount":2}]}`, `{"initContainerStatuses":[{"name":"c","restartCount":1}]}`, "2 restarts to 1"},
		{"a container is forgotten", `{"ephemeralContainerStatuses":[{"name":"c"}]}`, `{}`, "lost the status of container c"},
		{"a condition is forgotten", `{"conditions":[{"type":"Initialized","status":"True"}]}`, `{}`, "lost its condition Initialized"},
		{"not scheduled any more", `{"conditions":[{"type":"PodScheduled","status":"True"}]}`, `{"conditions":[{"type":"PodScheduled","status":"False"}]}`, "not scheduled"},
		{"a condition changed before", `{"conditions":[{"type":"Initialized","status":"False","lastTransitionTime":"2026-01-01T00:00:02Z"}]}`,
			`{"conditions":[{"type":"Initialized","status":"True","lastTransitionTime":"2026-01-01T00:00:01Z"}]}`, "before it changed the last time"},
		{"its node is gone", `{"phase":"Running"}`, `{"phase":"Failed","conditions":[{"type":"DisruptionTarget","status":"True","reason":"DeletionByPodGC"},` + ready + `],"containerStatuses":[{` + running + `,"ready":true}]}`, ""},
		{"a resize is over", `{"conditions":[{"type":"PodResizeInProgress","status":"True"}]}`, `{}`, ""},
		{"ready too early", "", `{"phase":"Pending","conditions":[` + ready + `]}`, "ready in phase Pending"},
		{"ready without its containers", "", `{"phase":"Running","conditions":[` + ready + `],"containerStatuses":[{` + running + `}]}`, "a container that is not ready"},
		{"ready without ContainersReady", "", `{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}`, "is ready in phase"},
		{"a ready container that ended", "", `{"containerStatuses":[{` + ended + `,"ready":true}]}`, "ready and not running"},
		{"over, and a container runs", "", `{"phase":"Failed","containerStatuses":[{` + running + `}]}`, "is Failed and container c runs"},
		{"ended before it began", "", `{"containerStatuses":[{` + strings.ReplaceAll(ended, ":02Z", ":00Z") + `}]}`, "before it started"},
	} {
		pod := func(status string) *corev1.Pod {
			if status == "" {
				return nil
			}
			p := &corev1.Pod{}
			p.Name, p.UID = "p", "u"
			if err := json.Unmarshal([]byte(status), &p.Status); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			return p
		}
		found := strings.Join(podhistory.Faults(pod(tt.before), pod(tt.after)), "; ")
		if tt.want == "" && found != "" || !strings.Contains(found, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, found, tt.want)
		}
	}
	before, after := &corev1.Pod{}, &corev1.Pod{}
	before.UID, before.Status.Phase, after.UID, after.Status.Phase = "a", corev1.PodFailed, "b", corev1.PodPending
	if found := podhistory.Faults(before, after); len(found) > 0 {
		t.Errorf("another pod of the name: %q", found)
	}
}
