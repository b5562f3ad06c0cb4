//! The simulated array is strict, and serves clients that know nothing of our driver.

use array_matrix::{Simulated, Sr};
use plugin_sdk::testing::run;
use serde_json::{Value, json};

use crate::world::{Ontap, POOL, ask};

async fn code(simulated: &Simulated, line: &str, body: &Value) -> (u16, String) {
    let (status, answer) = ask(simulated, line, body).await;
    let code = &answer["error"]["code"];
    assert!(code.is_string() || status < 300, "{line}: {answer}");
    (status, code.as_str().unwrap_or_default().to_owned())
}

#[test]
fn what_the_reference_does_not_have_is_refused_by_its_code() {
    run(async {
        let sr = Sr::<Ontap>::new().await?;
        let array = &sr.simulated;
        let path = |name: &str| format!("/vol/{POOL}/{name}");
        let lun = |more: Value| {
            let mut body = json!({ "name": path("new"), "os_type": "xen", "svm": { "name": "svm1" },
                "space": { "size": 8192 } });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let source = json!({ "source": { "name": path("theirs") } });
        let theirs =
            ask(array, &format!("GET /storage/luns?name={}", path("theirs")), &json!({})).await;
        let theirs = theirs.1["records"][0]["uuid"].as_str().unwrap().to_owned();
        let modify = format!("PATCH /storage/luns/{theirs}");
        let long = "x".repeat(4080);
        for (line, body, expected) in [
            ("POST /storage/luns", lun(json!({ "colour": "red" })), (400, "262179")),
            ("POST /storage/luns?colour=red", lun(json!({})), (400, "262179")),
            ("POST /storage/luns", lun(json!({ "os_type": "dos" })), (400, "262197")),
            ("POST /storage/luns", lun(json!({ "space": { "size": "8192" } })), (400, "262197")),
            ("POST /storage/luns", lun(json!({ "space": { "size": 512 } })), (400, "5374124")),
            (
                "POST /storage/luns",
                lun(json!({ "space.size": 140_737_488_355_329_u64 })),
                (400, "5374125"),
            ),
            ("POST /storage/luns", lun(json!({ "svm": {} })), (400, "2621707")),
            ("POST /storage/luns", lun(json!({ "svm": { "name": "x" } })), (400, "2621462")),
            ("POST /storage/luns", lun(json!({ "name": "/vol/none/l" })), (404, "917927")),
            ("POST /storage/luns", lun(json!({ "name": path("a b") })), (400, "5374121")),
            ("POST /storage/luns", lun(json!({ "name": path("theirs") })), (409, "5374242")),
            ("POST /storage/luns", lun(json!({ "clone": source })), (400, "5374883")),
            (
                "POST /storage/luns",
                lun(json!({ "attributes": [{ "name": long, "value": "more than fits" }] })),
                (400, "5374929"),
            ),
            (modify.as_str(), json!({ "space": { "size": 1 << 20 } }), (400, "1254226")),
            (modify.as_str(), json!({ "space": { "size": 8192 } }), (400, "5374892")),
            (modify.as_str(), json!({ "serial_number": "x" }), (400, "262179")),
            (&format!("DELETE /storage/luns/{theirs}"), json!({}), (409, "1254197")),
            (
                &format!("PATCH /storage/luns/{theirs}/attributes/x"),
                json!({ "value": "y" }),
                (404, "5374931"),
            ),
            (
                "POST /protocols/san/lun-maps",
                json!({ "lun.name": path("theirs"), "igroup.name": "theirs", "svm.name": "svm1" }),
                (409, "1254207"),
            ),
            (
                "POST /protocols/san/lun-maps",
                json!({ "lun.name": path("theirs"), "igroup.name": "theirs", "svm.name": "svm1",
                    "logical_unit_number": 4096 }),
                (400, "262197"),
            ),
            ("DELETE /protocols/san/lun-maps/a/b", json!({}), (404, "5374922")),
            (
                "POST /protocols/san/igroups",
                json!({ "name": "theirs", "os_type": "linux", "svm.name": "svm1" }),
                (409, "5374023"),
            ),
            ("GET /storage/nothing", json!({}), (404, "3")),
            ("GET /cluster/jobs/1cd8a442-86d1-11e0-0000-0000000000ff", json!({}), (404, "4")),
        ] {
            let found = code(array, line, &body).await;
            assert_eq!((found.0, found.1.as_str()), expected, "{line} {body}");
        }
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// As deployed clients ask: dotted names, a snapshot of the FlexVol by a job, a LUN out of it, and LUN
/// numbers that are one's own for each initiator.
#[test]
fn other_clients_are_served() {
    run(async {
        let sr = Sr::<Ontap>::new().await?;
        let array = &sr.simulated;
        let none = json!({});
        let (_, volumes) =
            ask(array, &format!("GET /storage/volumes?name={POOL}&fields=space.available,space.afs_total"), &none).await;
        let uuid = volumes["records"][0]["uuid"].as_str().unwrap();
        assert!(volumes["records"][0]["space"]["afs_total"].is_u64(), "{volumes}");
        let line = format!("POST /storage/volumes/{uuid}/snapshots");
        let (status, job) = ask(array, &line, &json!({ "name": "nightly" })).await;
        assert_eq!(status, 202);
        let href = job["job"]["_links"]["self"]["href"].as_str().unwrap();
        let (_, state) = ask(array, &format!("GET {}", href.trim_start_matches("/api")), &none).await;
        assert_eq!(state["state"], "success", "{state}");
        let again = code(array, &line, &json!({ "name": "nightly" })).await;
        assert_eq!(again, (409, "525059".to_owned()));
        let name = |lun: &str| format!("/vol/{POOL}/{lun}");
        let body = json!({ "name": name("copy"), "svm.name": "svm1",
            "clone": { "source": { "name": name(".snapshot/nightly/theirs") } } });
        let (status, made) = ask(array, "POST /storage/luns?return_records=true", &body).await;
        assert_eq!((status, &made["records"][0]["comment"]), (201, &json!("payroll")), "{made}");
        let (_, lun) = ask(array, &format!("GET /storage/luns?name={}&fields=*", name("theirs")), &none).await;
        let serials = [&made["records"][0], &lun["records"][0]].map(|one| one["serial_number"].clone());
        assert_ne!(serials[0], serials[1]);
        assert_eq!(serials[0].as_str().unwrap().len(), 12);

        // The same initiator in two groups.
        let body = json!({ "name": "second", "protocol": "iscsi", "os_type": "linux", "svm.name": "svm1" });
        let (_, group) = ask(array, "POST /protocols/san/igroups?return_records=true", &body).await;
        let group = group["records"][0]["uuid"].as_str().unwrap();
        let line = format!("POST /protocols/san/igroups/{group}/initiators");
        let them = json!({ "name": "iqn.2000-01.com.example:them" });
        assert_eq!(ask(array, &line, &them).await.0, 201);
        assert_eq!(code(array, &line, &them).await, (409, "5374035".to_owned()));
        let map = |more: Value| {
            let mut body = json!({ "lun.name": name("copy"), "igroup.name": "second", "svm.name": "svm1" });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let body = map(json!({ "logical_unit_number": 0 }));
        let clash = code(array, "POST /protocols/san/lun-maps", &body);
        assert_eq!(clash.await, (409, "1254193".to_owned()));
        let (_, made) = ask(array, "POST /protocols/san/lun-maps?return_records=true", &map(json!({}))).await;
        assert_eq!(made["records"][0]["logical_unit_number"], 1, "{made}");
        let line = format!("DELETE /protocols/san/igroups/{group}");
        assert_eq!(code(array, &line, &json!({})).await, (409, "1254213".to_owned()));
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}
